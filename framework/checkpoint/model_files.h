#pragma once

#include <filesystem>
#include <set>

#include "graft/export.h"

namespace graft {

/// Folders in a model's folder that belong to it: those of sentence-transformers modules, which
/// modules.json names ("1_Pooling"), and additional_chat_templates. No links, and none that holds
/// folders of its own or links out of the model and its cache.
GRAFT_API std::set<std::filesystem::path> folders_of_model(const std::filesystem::path& model);

/// Whether a file or folder of the model's folder goes unchanged with new weights: all but the
/// weights, what is written anew (config.json, README.md, graft's reports) and what is hidden. Links
/// are followed inside the folder and the cache that it lies in, and where they stand for files that
/// every model has.
GRAFT_API bool is_companion(const std::filesystem::path& path,
                            const std::set<std::filesystem::path>& folders);

}  // namespace graft
