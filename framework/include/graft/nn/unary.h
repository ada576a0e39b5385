#pragma once

#include <cstdint>
#include <span>

#include "graft/nn/block.h"

namespace graft::nn {

/// Tensor in, tensor out: Linear, Embedding, norms and what replaces them.
class GRAFT_API Unary : public Block {
 public:
  using Block::Block;
  ~Unary() override;  // anchors the type_info in libgraft: slots cast across libraries

  virtual torch::Tensor forward(const torch::Tensor& x) = 0;
  /// forward() of x where the module runs (execution_device()).
  torch::Tensor run(const torch::Tensor& x) {
    return forward(execution_device() ? x.to(*execution_device()) : x);
  }

  /// Divides the output by `divisor` [width] float32, positive, from now on, by changing own tensors.
  /// Gives what they really divide by after rounding to their dtype, [width] float32; undefined when
  /// this class cannot: nothing has changed then.
  virtual torch::Tensor divide_output(const torch::Tensor& divisor);

  /// Rows of a tensor that belong to one module: those after the rows of the segment before.
  struct Segment {
    Unary* module;
    std::int64_t rows;  ///< at least 1
  };
  /// What the modules of `segments` (one at least) make of their rows of x [P, K] at once: [P, N].
  /// Any of them may be asked. Undefined where these modules cannot, or one after the other is as
  /// fast: nothing has changed then, and each forward() gives its own.
  virtual torch::Tensor forward_segments(const torch::Tensor& x, std::span<const Segment> segments);
};

}  // namespace graft::nn
