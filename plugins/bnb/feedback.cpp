#include "feedback.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace graft::bnb {
namespace {

/// Codes by rising level: those of FP4 are not.
std::array<std::uint8_t, 16> rising_codes(QuantType type) {
  std::array<std::uint8_t, 16> codes;
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i);
  const auto& table = code_table(type);
  std::stable_sort(codes.begin(), codes.end(),
                   [&](auto a, auto b) { return table[a] < table[b]; });
  return codes;
}

}  // namespace

RoundingOptions feedback_options(Recipe recipe) {
  auto options = RoundingOptions::of(recipe);
  options.group_size = kBlock;
  return options;
}

QuantizedWeight feedback_weight(const WeightRounder& rounder, const at::Tensor& weight,
                                QuantType type, bool double_quant, at::ScalarType storage) {
  const auto codes = rising_codes(type);
  WeightGrid grid;
  for (const auto code : codes) grid.levels.push_back(code_table(type)[code]);
  grid.scale_dtype = at::kFloat;
  // Double quantization centres absmax: it is exact where values are near each other.
  grid.signed_scales = !double_quant;
  auto rounded = rounder.round(weight, grid);
  std::optional<NestedAbsmax> nested;
  if (double_quant) {
    nested = nest_absmax(rounded.scales.reshape({-1}).contiguous());
    rounded = rounder.round(weight, grid, nested->absmax.view(rounded.scales.sizes()));
  }
  auto of_rank = at::empty({16}, at::kByte);
  std::copy(codes.begin(), codes.end(), of_rank.mutable_data_ptr<std::uint8_t>());
  const auto pairs =
      of_rank.index_select(0, rounded.codes.reshape({-1}).to(at::kInt)).view({-1, 2});
  const auto packed = (pairs.select(1, 0) * 16 + pairs.select(1, 1)).view({-1, 1});
  return with_quant_state(packed.contiguous(), rounded.scales.reshape({-1}).contiguous(), weight,
                          type, nested, storage);
}

}  // namespace graft::bnb
