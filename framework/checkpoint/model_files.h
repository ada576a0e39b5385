#pragma once

#include <filesystem>

#include "graft/export.h"

namespace graft {

/// A module of sentence-transformers beside the model, as modules.json names it: "1_Pooling".
GRAFT_API bool is_module_folder(const std::filesystem::path& folder);

}  // namespace graft
