#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "distributing/shared_work.h"
#include "graft/pool.h"
#include "graft/rounding.h"

namespace graft {

double output_energy(const at::Tensor& m, const at::Tensor& h) {
  constexpr std::int64_t kRows = 128;
  const std::int64_t chunks = (m.size(0) + kRows - 1) / kRows;
  auto sums = at::zeros({chunks}, at::kDouble);
  auto* out = sums.mutable_data_ptr<double>();
  const SharedWork work(chunks);
  for_each_chunk(pool(), work.count(), [&](std::int64_t chunk) {
    const c10::InferenceMode guard;
    const auto i = work.first() + chunk;
    const auto rows = m.narrow(0, i * kRows, std::min(kRows, m.size(0) - i * kRows));
    out[i] = (at::mm(rows, h) * rows).sum(at::kDouble).item<double>();
  });
  work.complete(sums);
  return sums.sum().item<double>();
}

}  // namespace graft
