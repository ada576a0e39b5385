#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "graft/module_spec.h"
#include "graft/nn/block.h"
#include "graft/nn/tensor_part.h"
#include "graft/value.h"

namespace graft {

/// A replacement that keeps the values and changes the graph, so that modules appear which can be
/// quantized: fused experts become separate ones.
struct Restructuring {
  /// The replacement, every tensor on meta in `spec.dtype`, built from the model's text config.
  std::function<std::shared_ptr<nn::Block>(const ModuleSpec& spec, const Value& text_config)> build;
  /// Where its tensors' values are in the module replaced, reversible. Empty: as that module's own
  /// parts() say.
  std::function<std::vector<nn::TensorPart>(const ModuleSpec& spec, const Value& text_config)> map;
  /// Dense checkpoints have the tensors of the module replaced, not those of the replacement: a
  /// dequantized model is written so.
  bool stored_in_one_piece = false;
};

/// GRAFT_PLUGIN answers query(kRestructuringInterface, name) with a const Restructuring*.
inline constexpr const char* kRestructuringInterface = "graft.restructuring/2";

}  // namespace graft
