#pragma once

#include <filesystem>
#include <vector>

namespace graft {

/// The rules that come with graft lie beside the library: <dir of
/// libgraft.so>/graft/registry/*.yaml. Without them an output head would be quantized.
std::vector<std::filesystem::path> installed_rules();

/// The user's own: $XDG_CONFIG_HOME/graft/registry, else ~/.config/graft/registry.
std::vector<std::filesystem::path> user_rules();

}  // namespace graft
