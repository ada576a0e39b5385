#pragma once

#include "graft/nn/block.h"

namespace graft::nn {

/// The experts of a mixture-of-experts block: one interface for fused, separate and quantized ones,
/// so that each can take the other's place.
class GRAFT_API Experts : public Block {
 public:
  using Block::Block;
  ~Experts() override;  // anchors the type_info in libgraft

  /// x [T, H]; ids [T, k] int64 in [0, size()) and weights [T, k] say which experts a row goes to
  /// and how much each counts. Gives [T, H] in the type of x. Experts without rows do not run.
  virtual at::Tensor forward(const at::Tensor& x, const at::Tensor& ids,
                             const at::Tensor& weights) = 0;
  /// How many experts there are.
  virtual std::int64_t size() const = 0;
};

}  // namespace graft::nn
