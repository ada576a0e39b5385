#!/bin/sh
# Builds the CUDA kernels on a machine with a GPU, tests them, looks for bad memory accesses and races,
# measures them beside LibTorch and writes the GPU section of docs/performance.md. It needs LibTorch
# with CUDA, the CUDA Toolkit, CMake and Ninja; no network. Under ten minutes; what is done is not
# done again after an interruption.
#
#   bench/cuda.sh            everything
#   bench/cuda.sh build      builds alone
#
# GRAFT_TORCH_DIR   the torch directory of a LibTorch with CUDA; else that of python3
set -eu
cd "$(dirname "$0")/.."

fail() {
  printf 'bench/cuda.sh: %s\n' "$*" >&2
  exit 1
}

command -v nvidia-smi >/dev/null || fail "there is no nvidia-smi, so no GPU that CUDA can use"
torch=${GRAFT_TORCH_DIR:-$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')} ||
  fail "python3 has no torch; name the torch directory of a LibTorch in GRAFT_TORCH_DIR"
[ -f "$torch/lib/libtorch_cuda.so" ] || fail "the LibTorch in $torch was built without CUDA"
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d '.')
build=build/cuda-kernels
done=$build/measured
mkdir -p "$build"

cmake --preset cuda-kernels -DGRAFT_TORCH_DIR="$torch" \
  -DGRAFT_CUDA_ARCHITECTURES="$architecture-real" >"$build/configure.log" 2>&1 || {
  cat "$build/configure.log" >&2
  fail "the configuration failed"
}
cmake --build "$build" --target graft_cuda_device_tests graft_bench_cuda
[ "${1:-}" != build ] || exit 0
tests=$(find "$build" -name graft_cuda_device_tests -type f | head -1)
bench=$(find "$build" -name graft_bench_cuda -type f | head -1)

# once NAME COMMAND...: its output in $done/NAME; not again while the programs are the same
mkdir -p "$done"
once() {
  name=$1
  shift
  if [ -f "$done/$name" ] && [ "$done/$name" -nt "$bench" ] && [ "$done/$name" -nt "$tests" ]; then
    echo "$name: done before"
    return
  fi
  echo "$name"
  "$@" >"$done/$name.part" 2>&1 || {
    tail -40 "$done/$name.part" >&2
    fail "$name failed"
  }
  mv "$done/$name.part" "$done/$name"
}

once tests "$tests"
if command -v compute-sanitizer >/dev/null; then
  once memcheck compute-sanitizer --error-exitcode 1 --tool memcheck "$tests"
  # Others take many minutes under it; this one has both kinds of product.
  once racecheck compute-sanitizer --error-exitcode 1 --tool racecheck "$tests" "columns of wider"
else
  echo "memcheck, racecheck: no compute-sanitizer on this machine" >&2
fi
once table "$bench" table

# The section lies between two marks; the rest of the page stays.
awk -v table="$done/table" '
  /^<!-- bench\/cuda.sh writes from here -->$/ {
    print; print ""
    while ((getline line < table) > 0) print line
    print ""; skipping = 1
  }
  /^<!-- to here -->$/ { skipping = 0 }
  !skipping && !/writes from here/ { print }' docs/performance.md >"$build/performance.md"
cp "$build/performance.md" docs/performance.md
cat "$done/table"
