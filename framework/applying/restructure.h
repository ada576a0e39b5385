#pragma once

#include <memory>

#include "graft/restructuring.h"

namespace graft {

/// The replacement of `former` (described by `spec`) that `how` builds. When `former` holds data,
/// the replacement's tensors are views of it: nothing is copied, and the values are the same.
/// Throws Error(plugin) when what was built does not fit the map.
std::shared_ptr<nn::Block> restructured(const nn::Block& former, const Restructuring& how,
                                        const ModuleSpec& spec, const Value& text_config);

/// Where the tensors of a replacement of `former` come from.
std::vector<nn::TensorPart> parts_of(const nn::Block& former, const Restructuring& how,
                                     const ModuleSpec& spec, const Value& text_config);

}  // namespace graft
