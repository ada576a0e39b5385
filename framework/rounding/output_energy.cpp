#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "graft/pool.h"
#include "graft/rounding.h"

namespace graft {

double output_energy(const at::Tensor& m, const at::Tensor& h) {
  constexpr std::int64_t kRows = 128;
  const std::int64_t chunks = (m.size(0) + kRows - 1) / kRows;
  auto sums = at::zeros({chunks}, at::kDouble);
  auto* out = sums.mutable_data_ptr<double>();
  for_each_chunk(pool(), chunks, [&](std::int64_t i) {
    const c10::InferenceMode guard;
    const auto rows = m.narrow(0, i * kRows, std::min(kRows, m.size(0) - i * kRows));
    out[i] = (at::mm(rows, h) * rows).sum(at::kDouble).item<double>();
  });
  return sums.sum().item<double>();
}

}  // namespace graft
