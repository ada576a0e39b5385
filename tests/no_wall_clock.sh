#!/bin/sh
# Prints each line of code that asks for the time of day, and fails when there is one: somebody may
# set that clock while a job runs, so times and what is left are told by the steady one.
cd "$(dirname "$0")/.." || exit 1
! grep -rnE 'system_clock|high_resolution_clock|gettimeofday|CLOCK_REALTIME|[^a-z_]time\((nullptr|NULL|0)\)' \
  framework plugins examples
