#include <ATen/ATen.h>

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "calibrating/calibrate.h"
#include "graft/pool.h"

namespace graft {
namespace {

constexpr std::int64_t kRows = 2048;     ///< in float32 at once
constexpr std::int64_t kColumns = 256;  ///< of a block; those below the diagonal are not made

}  // namespace

at::Tensor second_moment(const at::Tensor& x) {
  const auto k = x.size(-1);
  const auto rows = x.reshape({-1, k});
  auto h = at::zeros({k, k}, at::kFloat);
  std::vector<std::pair<std::int64_t, std::int64_t>> blocks;
  for (std::int64_t i = 0; i < k; i += kColumns)
    for (std::int64_t j = i; j < k; j += kColumns) blocks.emplace_back(i, j);
  for (std::int64_t first = 0; first < rows.size(0); first += kRows) {
    const auto part =
        rows.narrow(0, first, std::min(kRows, rows.size(0) - first)).to(at::kFloat);
    for_each_chunk(pool(), static_cast<std::int64_t>(blocks.size()), [&](std::int64_t b) {
      const c10::InferenceMode guard;
      const auto [i, j] = blocks[static_cast<std::size_t>(b)];
      const auto height = std::min(kColumns, k - i), width = std::min(kColumns, k - j);
      h.narrow(0, i, height)
          .narrow(1, j, width)
          .addmm_(part.narrow(1, i, height).t(), part.narrow(1, j, width));
    });
  }
  h.div_(static_cast<double>(rows.size(0)));
  for_each_chunk(pool(), static_cast<std::int64_t>(blocks.size()), [&](std::int64_t b) {
    const c10::InferenceMode guard;
    const auto [i, j] = blocks[static_cast<std::size_t>(b)];
    const auto height = std::min(kColumns, k - i), width = std::min(kColumns, k - j);
    const auto above = h.narrow(0, i, height).narrow(1, j, width);
    h.narrow(0, j, width)
        .narrow(1, i, height)
        .copy_(i == j ? above.triu() + above.triu(1).t() : above.t());
  });
  return h;
}

}  // namespace graft
