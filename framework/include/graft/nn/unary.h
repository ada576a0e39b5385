#pragma once

#include "graft/nn/block.h"

namespace graft::nn {

/// Tensor in, tensor out: Linear, Embedding, norms and what replaces them.
class GRAFT_API Unary : public Block {
 public:
  using Block::Block;
  ~Unary() override;  // anchors the type_info in libgraft: slots cast across libraries

  virtual torch::Tensor forward(const torch::Tensor& x) = 0;
};

}  // namespace graft::nn
