#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "distributing/shared_work.h"
#include "graft/pool.h"
#include "graft/rounding.h"

namespace graft {
namespace {

/// Sum of x^T h x over the rows x of `rows` [R, K]. What is above h's diagonal counts twice, so a
/// block of its columns is multiplied down to its own rows only.
double energy(const at::Tensor& rows, const at::Tensor& h) {
  constexpr std::int64_t kColumns = 256;
  double sum = 0;
  for (std::int64_t first = 0; first < h.size(0); first += kColumns) {
    const auto width = std::min(kColumns, h.size(0) - first);
    const auto block = h.narrow(1, first, width), own = rows.narrow(1, first, width);
    auto product = at::mm(own, block.narrow(0, first, width));
    if (first > 0) product.add_(at::mm(rows.narrow(1, 0, first), block.narrow(0, 0, first)), 2);
    sum += product.mul_(own).sum(at::kDouble).item<double>();
  }
  return sum;
}

}  // namespace

std::vector<double> output_energies(const std::vector<at::Tensor>& matrices, const at::Tensor& h) {
  constexpr std::int64_t kRows = 128;
  std::vector<std::int64_t> begin{0};  // of each matrix's chunks
  for (const auto& m : matrices) begin.push_back(begin.back() + (m.size(0) + kRows - 1) / kRows);
  auto sums = at::zeros({begin.back()}, at::kDouble);
  auto* out = sums.mutable_data_ptr<double>();
  const SharedWork work(begin.back());
  for_each_chunk(pool(), work.count(), [&](std::int64_t chunk) {
    const c10::InferenceMode guard;
    const auto i = work.first() + chunk;
    const auto of = std::upper_bound(begin.begin(), begin.end(), i) - begin.begin() - 1;
    const auto& m = matrices[static_cast<std::size_t>(of)];
    const auto first = (i - begin[static_cast<std::size_t>(of)]) * kRows;
    const auto rows = m.narrow(0, first, std::min(kRows, m.size(0) - first));
    out[i] = energy(rows, h);
  });
  work.complete(sums);
  std::vector<double> energies;
  for (std::size_t i = 0; i < matrices.size(); ++i)
    energies.push_back(sums.narrow(0, begin[i], begin[i + 1] - begin[i]).sum().item<double>());
  return energies;
}

}  // namespace graft
