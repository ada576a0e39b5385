#!/bin/sh
# Builds the CUDA kernels on a machine with a GPU, tests them, looks for bad memory accesses and races,
# measures them beside LibTorch and writes the GPU section of docs/performance.md. It needs LibTorch
# with CUDA, the CUDA Toolkit, CMake and Ninja; no network. Under ten minutes without the host; what is
# done is not done again after an interruption.
#
#   bench/cuda.sh                everything; the host where GRAFT_PACKAGES is given
#   bench/cuda.sh build          builds the kernels alone
#   bench/cuda.sh host           builds graft and its plugins, and tests models and plugins on the GPU
#   bench/cuda.sh build-host     builds them alone; needs no GPU, and a LibTorch without CUDA will do
#   bench/cuda.sh packages FILE  where there are network and apt: writes the other libraries that graft
#                                is built with to FILE, an archive to carry, .tar.xz
#
# GRAFT_TORCH_DIR   the torch directory of a LibTorch with CUDA; else that of python3
# GRAFT_PACKAGES    that archive; else the host is built with what the system has
# Relative paths begin at the repository.
set -eu
cd "$(dirname "$0")/.."

fail() {
  printf 'bench/cuda.sh: %s\n' "$*" >&2
  exit 1
}

find_torch() {
  torch=${GRAFT_TORCH_DIR:-$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')} ||
    fail "python3 has no torch; name the torch directory of a LibTorch in GRAFT_TORCH_DIR"
}

find_gpu() {
  command -v nvidia-smi >/dev/null || fail "there is no nvidia-smi, so no GPU that CUDA can use"
  find_torch
  [ -f "$torch/lib/libtorch_cuda.so" ] || fail "the LibTorch in $torch was built without CUDA"
  architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d '.')
}

# configure PRESET OPTION...: sets build, its folder, and done, that of what was made there
configure() {
  build=build/$1
  done=$build/measured
  mkdir -p "$done"
  cmake --preset "$@" -DGRAFT_TORCH_DIR="$torch" \
    -DGRAFT_CUDA_ARCHITECTURES="$architecture-real" >"$build/configure.log" 2>&1 || {
    cat "$build/configure.log" >&2
    fail "the configuration failed"
  }
}

# once NAME COMMAND...: its output in $done/NAME; not again while the files $made are the same
once() {
  name=$1
  shift
  # shellcheck disable=SC2086 # a list
  if [ -f "$done/$name" ] && [ -z "$(find $made -newer "$done/$name")" ]; then
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

build_kernels() {
  configure cuda-kernels
  cmake --build "$build" --target graft_cuda_device_tests graft_bench_cuda
}

measure_kernels() {
  tests=$(find "$build" -name graft_cuda_device_tests -type f | head -1)
  bench=$(find "$build" -name graft_bench_cuda -type f | head -1)
  made="$tests $bench"
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
}

# needed PACKAGE...: they and all that they depend on, sorted
needed() {
  apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces --no-enhances "$@" | grep '^[a-z0-9]' | sort -u
}

# packages FILE: what ./run installs to compile against, with all it needs that g++ does not
packages() {
  command -v apt-get >/dev/null || fail "the packages are Debian's, but there is no apt-get"
  folder=build/packages
  rm -rf "$folder"
  mkdir -p "$folder/deb" "$folder/root"
  eval "$(sed -n '/^packages="/,/"$/p' run)"
  # shellcheck disable=SC2046,SC2086,SC2154 # lists; the one of ./run
  needed $(printf '%s\n' $packages | grep -e '-dev$') >"$folder/all"
  needed g++ >"$folder/with-g++"
  comm -23 "$folder/all" "$folder/with-g++" >"$folder/list"
  (cd "$folder/deb" && xargs apt-get -qq -o APT::Sandbox::User=root download <../list)
  for package in "$folder"/deb/*.deb; do dpkg -x "$package" "$folder/root"; done
  # Nothing links archives, and nobody reads or runs anything there.
  find "$folder/root" -name '*.a' -delete
  (cd "$folder/root/usr" && rm -rf bin sbin share/doc share/man)
  tar -C "$folder/root" -cJf "$1" usr
  echo "$1: $(wc -l <"$folder/list") packages, $(($(wc -c <"$1") / 1048576)) MiB"
}

build_host() {
  if [ -n "${GRAFT_PACKAGES:-}" ]; then
    prefix=$PWD/build/prefix
    [ -f "$GRAFT_PACKAGES" ] || fail "there is no file $GRAFT_PACKAGES, which GRAFT_PACKAGES names"
    if [ ! -d "$prefix" ] || [ -n "$(find "$GRAFT_PACKAGES" -newer "$prefix")" ]; then
      rm -rf "$prefix" "$prefix.part"
      mkdir -p "$prefix.part"
      python3 -m tarfile -e "$GRAFT_PACKAGES" "$prefix.part"  # tar would need xz
      mv "$prefix.part" "$prefix"
    fi
    set -- -DCMAKE_PREFIX_PATH="$prefix/usr"
    # Libraries there need each other.
    LD_LIBRARY_PATH=$(echo "$prefix"/usr/lib/*-linux-gnu)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
  fi
  configure cuda "$@"
  cmake --build "$build" --target graft_program graft_plugins
}

# Where there is a GPU no test of it may be skipped.
tests_on_gpu() {
  ctest --test-dir "$build" -R 'on a CUDA device' --no-tests=error --output-on-failure -j 4 \
    >"$done/ctest" 2>&1 || { cat "$done/ctest" && return 1; }
  cat "$done/ctest"
  ! grep Skipped "$done/ctest"
}

test_host() {
  made=$(find "$build/bin/graft" "$build/lib" -name '*graft*' -type f)
  once doctor "$build/bin/graft" doctor
  once models-and-plugins tests_on_gpu
  cat "$done/doctor" "$done/models-and-plugins"
}

case "${1:-}" in
  "" | build)
    find_gpu
    build_kernels
    [ -z "${1:-}" ] || exit 0
    measure_kernels
    if [ -n "${GRAFT_PACKAGES:-}" ]; then
      build_host
      test_host
    fi
    ;;
  host)
    find_gpu
    build_host
    test_host
    ;;
  build-host)
    find_torch
    architecture=90
    build_host
    ;;
  packages)
    [ -n "${2:-}" ] || fail "packages: name the file to write, such as packages.tar.xz"
    packages "$2"
    ;;
  *) fail "unknown word '$1': see the first lines of this script" ;;
esac
