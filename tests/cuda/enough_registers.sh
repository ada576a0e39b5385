#!/bin/sh
# enough_registers.sh ROOT FILE ARCHITECTURE COMPILER...: compiles ROOT/FILE for one architecture
# and prints each kernel that keeps registers in memory, or for want of them waits for every wgmma;
# fails when there is one. A cache may stand before the compiler: what it said is kept with the
# object.
root=$1 file=$2 architecture=$3
shift 3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$@" -std=c++20 -O3 -Xptxas=-v \
  "-I$root/framework" "-I$root/framework/include" "-I$root/${file%/*}/.." \
  "--generate-code=arch=compute_$architecture,code=[sm_$architecture]" \
  -c "$root/$file" -o "$folder/object.o" >"$folder/log" 2>&1 || {
  cat "$folder/log"
  exit 1
}
awk '
  /Compiling entry function/ { split($0, part, "\x27"); kernel = part[2]; ++kernels }
  /bytes spill stores/ {
    match($0, /[0-9]+ bytes spill stores/); stores = substr($0, RSTART) + 0
    match($0, /[0-9]+ bytes spill loads/); loads = substr($0, RSTART) + 0
    if (stores + loads) { print kernel ": " stores " bytes stored, " loads " loaded"; ++spilling }
  }
  /instructions are serialized/ {
    split($0, part, "\x27"); print part[2] ": its wgmma are serialized"; ++spilling
  }
  END {
    print spilling + 0 " complaints, " kernels + 0 " kernels"
    exit !kernels || spilling
  }' "$folder/log" >"$folder/found"
found=$?
if command -v c++filt >/dev/null; then c++filt <"$folder/found"; else cat "$folder/found"; fi
exit $found
