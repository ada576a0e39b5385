#!/bin/sh
# Prints each line of code that lists or removes folders with std::filesystem, and fails when there
# is one: where libstdc++ 12 gets no memory for that, it ends the process. checkpoint/folder.h has
# names_in and remove_tree.
cd "$(dirname "$0")/.." || exit 1
! grep -rnE 'directory_iterator|remove_all\(|fs::is_empty|filesystem::is_empty' \
  --include=*.cpp framework plugins
