#!/bin/sh
# Prints each line of code under framework/ that names a quantization method, and fails when there
# is one: the host knows methods by what plugins claim. Comments do not count, strings do.
cd "$(dirname "$0")/.." || exit 1
find framework -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' \) | sort |
  xargs awk '
    FNR == 1 { inside = 0 }
    {
      code = ""; rest = $0
      while (length(rest)) {
        if (inside) {
          end = index(rest, "*/")
          if (!end) break
          rest = substr(rest, end + 2); inside = 0
        } else if (match(rest, /^"([^"\\]|\\.)*"/)) {
          code = code substr(rest, 1, RLENGTH); rest = substr(rest, RLENGTH + 1)
        } else if (substr(rest, 1, 2) == "//") {
          break
        } else if (substr(rest, 1, 2) == "/*") {
          inside = 1; rest = substr(rest, 3)
        } else {
          code = code substr(rest, 1, 1); rest = substr(rest, 2)
        }
      }
      if (tolower(code) ~ /gptq|awq|bitsandbytes|bnb/) { print FILENAME ":" FNR ": " code; ++found }
    }
    END { print found + 0; exit found > 0 }'
