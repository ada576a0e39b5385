#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "registry/registry.h"

namespace graft {

inline constexpr std::size_t kMaxPatchFileBytes = 1 << 20;

/// One YAML file of rules, as written. Format: docs/registry.md.
struct PatchFile {
  std::vector<Rule> rules;
  std::vector<std::pair<std::string, std::string>> aliases;
  std::vector<std::string> skips;
  bool skips_replace = false;
  std::vector<std::string> notes;
};

/// Throws Error(plugin) with file:line:column. Limits: 1 MB, 64 levels, 100,000 nodes, no aliases,
/// anchors, tags or merge keys.
PatchFile parse_patch_file(std::string_view yaml, const std::string& file_name, Tier tier);

}  // namespace graft
