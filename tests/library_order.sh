#!/bin/sh
# library_order.sh FILE...: fails unless each program and library needs libstdc++ before LibTorch, whose
# wheels show parts of another libstdc++: names are looked up in the order of what is needed.
for file in "$@"; do
  readelf -d "$file" | awk -v file="$file" '
    /NEEDED/ && /libstdc\+\+/ && !torch { good = 1 }
    /NEEDED/ && /lib(torch|c10)/ { torch = 1 }
    END {
      if (!good) print file ": libstdc++ is not needed, or LibTorch before it"
      exit !good
    }' || failed=1
done
exit "${failed:-0}"
