#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "graft/error.h"
#include "graft/quantizer.h"

// What plugins' operators ask of their arguments, which come from Python and may be anything. All
// throws Error(usage) naming the argument; kernels behind it read no byte that is not there.

namespace graft::kernels {

/// "Float [2, 3] on cpu"
inline std::string words_of(const at::Tensor& tensor) {
  std::ostringstream out;
  out << c10::toString(tensor.scalar_type()) << " " << tensor.sizes() << " on " << tensor.device();
  return out.str();
}

inline Error wrong_argument(const std::string& name, const std::string& expected,
                            const std::string& found) {
  Error error(ErrorKind::usage, "the argument does not fit");
  error.at(quote(name)).expected(expected).found(found);
  return error;
}

/// `sizes` empty: any shape.
inline void require_tensor(const std::string& name, const at::Tensor& tensor,
                           const std::vector<at::ScalarType>& dtypes,
                           const std::optional<std::vector<std::int64_t>>& sizes,
                           const c10::Device& device) {
  const auto is_of = [&](at::ScalarType type) { return tensor.scalar_type() == type; };
  if (tensor.layout() == at::kStrided && tensor.device() == device &&
      std::any_of(dtypes.begin(), dtypes.end(), is_of) &&
      (!sizes || tensor.sizes() == at::IntArrayRef(*sizes)))
    return;
  std::ostringstream expected;
  for (std::size_t i = 0; i < dtypes.size(); ++i)
    expected << (i ? " or " : "") << c10::toString(dtypes[i]);
  if (sizes) expected << " " << at::IntArrayRef(*sizes);
  expected << " on " << device;
  throw wrong_argument(name, expected.str(), words_of(tensor));
}

/// The tensors of a module: each required one, in dtype and shape as `specs` say, all on `device`.
inline void require_tensors(const Tensors& given, const std::vector<TensorSpec>& specs,
                            const c10::Device& device) {
  for (const auto& spec : specs) {
    const auto* tensor = given.find(spec.name);
    if (tensor)
      require_tensor(spec.name, *tensor, spec.dtypes, spec.shape, device);
    else if (spec.required)
      throw wrong_argument(spec.name, "a tensor", "None");
  }
}

/// A packed matrix, from whose sizes others are counted; both fit 31 bits.
inline void require_matrix(const std::string& name, const at::Tensor& tensor) {
  constexpr std::int64_t kMost = INT32_MAX;
  if (tensor.dim() != 2 || tensor.size(0) < 1 || tensor.size(1) < 1 || tensor.size(0) > kMost ||
      tensor.size(1) > kMost)
    throw wrong_argument(name, "a matrix that is not empty", words_of(tensor));
}

/// x [..., k] of a float type.
inline void require_input(const at::Tensor& x, std::int64_t k, const c10::Device& device) {
  if (x.dim() < 1 || x.size(-1) != k)
    throw wrong_argument("x", "[..., " + std::to_string(k) + "]", words_of(x));
  require_tensor("x", x, {at::kFloat, at::kHalf, at::kBFloat16}, std::nullopt, device);
}

/// The sizes of a product with n outputs.
inline std::vector<std::int64_t> product_sizes(const at::Tensor& x, std::int64_t n) {
  auto sizes = x.sizes().vec();
  sizes.back() = n;
  return sizes;
}

}  // namespace graft::kernels
