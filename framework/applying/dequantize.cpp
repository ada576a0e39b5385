#include "applying/dequantize.h"

#include <ATen/ATen.h>

#include "applying/convert.h"
#include "applying/swaps.h"
#include "graft/error.h"
#include "graft/host.h"
#include "graft/module_graph.h"
#include "graft/nn/layers.h"
#include "graft/quantizer.h"
#include "graft/tensors.h"
#include "models/unknown_model.h"
#include "planning/tensor_planner.h"
#include "plugins/call.h"

namespace graft {
namespace {

/// A tensor of a module that was not converted, and what it becomes.
struct Cast {
  nn::Block* block;
  std::string name, full;
  at::Tensor tensor;
  at::ScalarType dtype;
};

std::vector<Cast> casts_of(nn::Block& block, const std::string& path, const Plan& plan,
                           at::ScalarType dtype, const TensorDtypes& dtypes) {
  std::vector<Cast> out;
  for (const auto& [name, tensor] : block.own_tensors()) {
    const std::string full = join_path(path, name);
    const auto known = dtypes.find(full);
    const auto to = known != dtypes.end()               ? known->second
                    : tensor.scalar_type() == plan.dtype ? dtype
                                                         : tensor.scalar_type();
    if (tensor.is_floating_point() && to != tensor.scalar_type())
      out.push_back({&block, name, full, tensor, to});
  }
  return out;
}

struct Dense {
  at::Tensor weight, bias;  ///< bias undefined: none
};

Dense dequantized(const PlanEntry& entry, const nn::Block& block) {
  return call_plugin(entry.plugin, entry.spec.path, [&] {
    Dense out{entry.quantizer->dequantize(block), {}};
    const Tensors saved = entry.quantizer->save(block, *entry.config);
    // A file may have a bias that the model has not; one of zeros adds nothing.
    if (const auto* bias = saved.find("bias"))
      if (entry.spec.bias || bias->ne(0).any().item<bool>()) out.bias = *bias;
    return out;
  });
}

void require_fits(const at::Tensor& values, at::ScalarType dtype, const std::string& name) {
  if (!values.defined() || values.to(dtype).isfinite().eq(values.isfinite()).all().item<bool>())
    return;
  throw Error(ErrorKind::usage, "values do not fit into the dtype")
      .at(name)
      .expected("at most 65504 in float16")
      .found(std::to_string(values.abs().nan_to_num(0, 0, 0).max().item<double>()))
      .hint("choose bfloat16 or float32 (--dtype)");
}

}  // namespace

void dequantize_in_place(const std::shared_ptr<nn::Block>& root, const Plan& plan,
                         at::ScalarType dtype, const TensorDtypes& dtypes) {
  require_model_dtype(dtype);
  std::vector<std::pair<const PlanEntry*, const nn::Block*>> converted;
  std::vector<Cast> casts;
  for (const auto& entry : plan.entries) {
    auto* block = dynamic_cast<nn::Block*>(module_at(root, entry.spec.path).get());
    if (entry.action == Action::restructure || !block) continue;
    if (entry.action == Action::quantize && class_name_of(*block) == entry.replacement)
      converted.emplace_back(&entry, block);
    else if (dtype != plan.dtype)
      for (auto& cast : casts_of(*block, entry.spec.path, plan, dtype, dtypes))
        casts.push_back(std::move(cast));
  }
  if (dtype == at::kHalf) {
    for (const auto& [entry, block] : converted) {
      const Dense dense = dequantized(*entry, *block);
      require_fits(dense.weight, dtype, join_path(entry->spec.path, "weight"));
      require_fits(dense.bias, dtype, join_path(entry->spec.path, "bias"));
    }
    for (const auto& cast : casts) require_fits(cast.tensor, cast.dtype, cast.full);
  }
  for (const auto& [entry, block] : converted) {
    const auto [weight, bias] = dequantized(*entry, *block);
    auto linear = std::make_shared<nn::Linear>(entry->spec.in_features, entry->spec.out_features,
                                               bias.defined(),
                                               at::TensorOptions(at::kMeta).dtype(dtype));
    linear->set_tensor("weight", weight.to(dtype));
    if (bias.defined()) linear->set_tensor("bias", bias.to(dtype));
    Swaps swaps(root);
    swaps.swap_everywhere(*entry, linear);
    swaps.keep();
  }
  for (auto& cast : casts) {
    cast.block->set_tensor(cast.name, cast.tensor.to(cast.dtype));
    cast.tensor.reset();
  }
  if (casts.empty()) return;
  tie(root);
  dispatch_model(root, plan);
}

void Host::dequantize(LoadedModel& loaded, at::ScalarType dtype) const {
  TensorDtypes dtypes;
  const Value& config = loaded.checkpoint.config();
  if (dtype != loaded.plan.dtype && is_known_architecture(config)) {
    require_model_dtype(dtype);
    const auto like = build_model(config, at::TensorOptions(at::kMeta).dtype(dtype));
    for (const auto& [path, module] : named_modules(like))
      if (const auto* block = dynamic_cast<const nn::Block*>(module.get()))
        for (const auto& [name, tensor] : block->own_tensors())
          dtypes[join_path(path, name)] = tensor.scalar_type();
  }
  dequantize_in_place(loaded.model, loaded.plan, dtype, dtypes);
  loaded.config = nullptr;
  loaded.quantization_config = {};
  loaded.plan.pre_quantized = false;
  loaded.plan.dtype = dtype;
}

}  // namespace graft
