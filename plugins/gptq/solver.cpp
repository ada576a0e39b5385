#include "solver.h"

#include <ATen/ATen.h>

#include <optional>

#include "graft/error.h"
#include "graft/rounding.h"
#include "kernels/format.h"
#include "linear.h"
#include "settings.h"

namespace graft::gptq {
namespace {

RoundingOptions options_of(const GptqConfig& config, std::int64_t inputs, Recipe recipe) {
  if (!(config.damping > 0 && config.damping < 1))
    throw Error(ErrorKind::usage, "the damping cannot be used")
        .at("field 'damp_percent'")
        .expected("more than 0 and less than 1")
        .found(std::to_string(config.damping));
  auto options = RoundingOptions::of(recipe);
  options.group_size = config.group_of(inputs);
  if (config.desc_act && !config.static_groups) options.order = RoundingOrder::activation;
  options.damping = config.damping;
  return options;
}

WeightGrid grid_of(const GptqConfig& config, at::ScalarType dtype) {
  WeightGrid grid;
  grid.bits = config.bits;
  grid.own_zeros = !config.sym;
  // AutoGPTQ reads a stored zero of -1 as 2^bits.
  grid.least_zero = config.format == GptqConfig::Format::v1 ? 1 : 0;
  grid.scale_dtype = dtype == at::kBFloat16 ? at::kBFloat16 : at::kHalf;
  return grid;
}

at::Tensor packed(const at::Tensor& values, int bits) {
  const auto flat = values.contiguous();
  auto words = at::empty({words_for(flat.size(0), bits), flat.size(1)}, at::kInt);
  pack_fields(flat.const_data_ptr<std::uint8_t>(), flat.size(0), flat.size(1), flat.size(1), bits,
              reinterpret_cast<std::uint32_t*>(words.mutable_data_ptr<std::int32_t>()));
  return words;
}

Tensors to_tensors(const RoundedWeight& rounded, const WeightRounder& rounder,
                   const GptqConfig& config, std::int64_t inputs) {
  // The zeros of a group are one stream along the outputs, from a word's beginning on.
  auto zeros = packed(rounded.zeros, config.bits).t().contiguous();
  auto* row = reinterpret_cast<std::uint32_t*>(zeros.mutable_data_ptr<std::int32_t>());
  if (config.format == GptqConfig::Format::v1)
    for (std::int64_t g = 0; g < zeros.size(0); ++g, row += zeros.size(1))
      to_borrowed(row, zeros.size(1), config.bits);
  auto group_of = rounder.group_of();
  if (!group_of.defined())
    group_of = at::arange(inputs, at::kLong)
                   .div(config.group_of(inputs), "floor")
                   .to(at::kInt);
  return {{"qweight", packed(rounded.codes.t(), config.bits)},
          {"qzeros", zeros},
          {"scales", rounded.scales.t().contiguous()},
          {"g_idx", group_of}};
}

}  // namespace

GroupResult quantize_group(const ModuleGroup& group) {
  GroupResult result;
  std::optional<WeightRounder> rounder;
  const GptqConfig* prepared_for = nullptr;
  for (const auto& member : group.members) {
    const auto& config = dynamic_cast<const GptqConfig&>(*member.config);
    const auto inputs = member.spec.in_features;
    if (!rounder || config.group_of(inputs) != prepared_for->group_of(inputs) ||
        config.desc_act != prepared_for->desc_act ||
        config.static_groups != prepared_for->static_groups || config.damping != prepared_for->damping) {
      rounder.emplace(inputs, group.inputs, options_of(config, inputs, group.recipe));
      prepared_for = &config;
      result.fallback = rounder->fallback();
    }
    const auto rounded =
        rounder->round(member.dense.at("weight"), grid_of(config, member.spec.dtype));
    Tensors tensors = to_tensors(rounded, *rounder, config, inputs);
    if (const auto* bias = member.dense.find("bias")) tensors.set("bias", *bias);
    auto module = std::make_shared<QuantLinear>(member.spec, config);
    module->fill(tensors, config);
    result.modules.push_back(std::move(module));
  }
  return result;
}

std::shared_ptr<nn::Block> with_moved_codes(const nn::Block& module, const ModuleSpec& spec,
                                            const QuantConfig& config, const at::Tensor& moves) {
  const auto& before = dynamic_cast<const QuantLinear&>(module);
  const auto& settings = dynamic_cast<const GptqConfig&>(config);
  Tensors tensors = before.stored(settings.format);
  const auto codes = (before.codes().to(at::kShort) + moves.t()).to(at::kByte);
  tensors.set("qweight", packed(codes, settings.bits));
  auto out = std::make_shared<QuantLinear>(spec, settings);
  out->fill(tensors, settings);
  return out;
}

}  // namespace graft::gptq
