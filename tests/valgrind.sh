#!/bin/sh
# valgrind.sh PROGRAM ARGUMENT...: runs the program under valgrind; 77 where there is none. Memory
# used wrongly and memory lost are errors. Nothing of LibTorch has to be excused.
command -v valgrind >/dev/null || exit 77
OMP_NUM_THREADS=1 exec valgrind --quiet --error-exitcode=9 --leak-check=full "$@"
