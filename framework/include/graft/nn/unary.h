#pragma once

#include "graft/nn/block.h"

namespace graft::nn {

/// Tensor in, tensor out: Linear, Embedding, norms and what replaces them.
class GRAFT_API Unary : public Block {
 public:
  using Block::Block;
  ~Unary() override;  // anchors the type_info in libgraft: slots cast across libraries

  virtual torch::Tensor forward(const torch::Tensor& x) = 0;

  /// Divides the output by `divisor` [width] float32, positive, from now on, by changing own tensors.
  /// Gives what they really divide by after rounding to their dtype, [width] float32; undefined when
  /// this class cannot: nothing has changed then.
  virtual torch::Tensor divide_output(const torch::Tensor& divisor);
};

}  // namespace graft::nn
