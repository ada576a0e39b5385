#pragma once

#include <memory>
#include <string>

#include "graft/nn/unary.h"

namespace graft {

// Leaf modules as the slots of a model hold them.

std::shared_ptr<nn::Unary> linear(std::int64_t in_features, std::int64_t out_features, bool bias,
                                  const at::TensorOptions& options);
/// A Linear of another class name, such as a router that Transformers derives from it.
std::shared_ptr<nn::Unary> linear(std::string class_name, std::int64_t in_features,
                                  std::int64_t out_features, bool bias,
                                  const at::TensorOptions& options);
std::shared_ptr<nn::Unary> embedding(std::int64_t count, std::int64_t width,
                                     const at::TensorOptions& options);
/// x / rms(x) in the input's dtype, times weight: the norm of Llama and most others.
std::shared_ptr<nn::Unary> rms_norm(std::string class_name, std::int64_t width, double eps,
                                    const at::TensorOptions& options);
/// x / rms(x) * (offset + weight), all in float32 before the result takes the input's dtype.
std::shared_ptr<nn::Unary> wide_rms_norm(std::string class_name, std::int64_t width, double eps,
                                         double offset, const at::TensorOptions& options);
std::shared_ptr<nn::Unary> layer_norm(std::int64_t width, double eps,
                                      const at::TensorOptions& options);

}  // namespace graft
