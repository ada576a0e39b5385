#!/bin/sh
# torchrun.sh PYTHON TESTS: two processes of one launch; 77 without torchrun.
"$1" -c 'import torch.distributed.run' 2>/dev/null || exit 77
exec "$1" -m torch.distributed.run --standalone --local-addr 127.0.0.1 --no-python \
  --nproc-per-node 2 "$2" -ns -tc="under torchrun*"
