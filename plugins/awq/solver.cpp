#include "solver.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "graft/pool.h"
#include "graft/rounding.h"
#include "kernels/format.h"
#include "layouts.h"
#include "linear.h"
#include "settings.h"

namespace graft::awq {
namespace {

RoundingOptions options_of(const GroupMember& member, Recipe recipe) {
  auto options = RoundingOptions::of(recipe);
  options.group_size =
      dynamic_cast<const AwqConfig&>(*member.config).group_of(member.spec.in_features);
  return options;
}

WeightGrid grid_of(const GroupMember& member) {
  WeightGrid grid;
  grid.own_zeros = dynamic_cast<const AwqConfig&>(*member.config).zero_point;
  grid.signed_scales = false;  // readers of AWQ fold scales into unsigned steps
  grid.scale_dtype = member.spec.dtype == at::kBFloat16 ? at::kBFloat16 : at::kHalf;
  return grid;
}

at::Tensor dequantized(const RoundedWeight& rounded, std::int64_t group_size) {
  const auto wide = [&](const at::Tensor& of_groups) {
    return of_groups.to(at::kFloat)
        .repeat_interleave(group_size, 1)
        .narrow(1, 0, rounded.codes.size(1));
  };
  return (rounded.codes.to(at::kFloat) - wide(rounded.zeros)) * wide(rounded.scales);
}

/// int32 [K, N / 8] of contiguous codes [K, N].
at::Tensor packed_by_gemm(const at::Tensor& codes) {
  auto words = at::empty({codes.size(0), codes.size(1) / 8}, at::kInt);
  const auto* from = codes.const_data_ptr<std::uint8_t>();
  auto* to = reinterpret_cast<std::uint32_t*>(words.mutable_data_ptr<std::int32_t>());
  for_each_chunk(pool(), codes.size(0), [&](std::int64_t k) {
    pack_gemm(from + k * codes.size(1), codes.size(1), to + k * codes.size(1) / 8);
  });
  return words;
}

/// Rows of a weight by which the search judges it.
struct Sample {
  at::Tensor weight;  ///< [n, K] float32
  WeightGrid grid;
  double share = 1;  ///< of the rows

  Sample(const GroupMember& member, bool all) : grid(grid_of(member)) {
    constexpr std::int64_t kRun = 16;  // are rounded side by side
    const auto& whole = member.dense.at("weight");
    weight = (all ? whole : sampled_rows(whole, kRun)).to(at::kFloat);
    share = static_cast<double>(weight.size(0)) / static_cast<double>(whole.size(0));
  }
};

}  // namespace

std::shared_ptr<nn::Block> with_moved_codes(const nn::Block& module, const ModuleSpec& spec,
                                            const QuantConfig& config, const at::Tensor& moves) {
  const auto& before = dynamic_cast<const WQLinear&>(module);
  const auto& settings = dynamic_cast<const AwqConfig&>(config);
  Tensors tensors = before.stored(settings.version);
  const auto codes =
      (before.codes().to(at::kShort) + moves.t()).to(at::kByte).contiguous();
  tensors.set("qweight",
              pack_codes(packed_by_gemm(codes), spec.out_features, settings.version));
  auto out = std::make_shared<WQLinear>(spec, settings);
  out->fill(tensors, settings);
  return out;
}

GroupResult quantize_group(const ModuleGroup& group) {
  GroupResult result;
  std::optional<WeightRounder> rounder;
  RoundingOptions options;
  for (const auto& member : group.members) {
    const auto& config = dynamic_cast<const AwqConfig&>(*member.config);
    if (const auto own = options_of(member, group.recipe);
        !rounder || own.group_size != options.group_size) {
      options = own;
      rounder.emplace(member.spec.in_features, group.inputs, options);
      result.fallback = rounder->fallback();
    }
    const auto rounded = rounder->round(member.dense.at("weight"), grid_of(member));
    const auto codes = rounded.codes.t().contiguous();  // [K, N]
    Packed packed;
    packed.qweight = packed_by_gemm(codes);
    packed.scales = rounded.scales.t().contiguous();
    packed.zeros = rounded.zeros.t().contiguous();
    Tensors tensors = pack(packed, member.spec.out_features, options.group_size, config.version);
    if (const auto* bias = member.dense.find("bias")) tensors.set("bias", *bias);
    auto module = std::make_shared<WQLinear>(member.spec, config);
    module->fill(tensors, config);
    result.modules.push_back(std::move(module));
  }
  return result;
}

at::Tensor find_input_scales(const ModuleGroup& group) {
  constexpr double kLargestPower = 0.8;
  const int steps = group.recipe == Recipe::fast ? 4 : group.recipe == Recipe::best ? 16 : 8;
  const auto options = options_of(group.members.front(), Recipe::fast);
  const auto& h = group.inputs.hessian;
  const WeightRounder unscaled(h.size(0), group.inputs, options);
  if (!unscaled.fallback().empty()) return {};
  const auto group_size = unscaled.groups() == 1 ? h.size(0) : options.group_size;
  // As the rounder weighs it: less off the diagonal than the text shows.
  auto weigher = h * (1 - options.shrinkage);
  weigher.diagonal().copy_(h.diagonal());
  const auto strength = h.diagonal().clamp_min(0).sqrt();
  std::vector<Sample> samples;
  for (const auto& member : group.members)
    samples.emplace_back(member, /*all=*/group.block_error != nullptr);
  double least = std::numeric_limits<double>::infinity();
  at::Tensor best;
  for (int i = 0; i <= steps; ++i) {
    auto scales = at::ones_like(strength);
    if (i > 0) {
      // Inputs that are nearly never there would be scaled without bound.
      scales = (strength / strength.max()).clamp_min(1e-4).pow(kLargestPower * i / steps);
      scales.div_((scales.max() * scales.min()).sqrt());
    }
    const auto rounder = unscaled.scaled(scales);
    std::vector<at::Tensor> rounded, deviations;
    for (const auto& [weight, grid, share] : samples) {
      rounded.push_back(dequantized(rounder.round(weight * scales, grid), group_size) / scales);
      deviations.push_back(weight - rounded.back());
    }
    double lost = 0;
    if (group.block_error) {
      lost = group.block_error(rounded);
    } else {
      const auto energies = output_energies(deviations, weigher);
      for (std::size_t m = 0; m < samples.size(); ++m) lost += energies[m] / samples[m].share;
    }
    if (lost < least) {
      least = lost;
      best = i > 0 ? scales : at::Tensor();
    }
  }
  return best;
}

}  // namespace graft::awq
