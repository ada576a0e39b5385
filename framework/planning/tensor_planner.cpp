#include "planning/tensor_planner.h"

#include <algorithm>

#include "graft/error.h"
#include "graft/tensors.h"
#include "plugins/call.h"

namespace graft {
namespace {

constexpr nn::Region kTransposed{.transpose = true};

std::string shape_text(at::IntArrayRef shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

std::string parent_of(const std::string& path) {
  const auto dot = path.rfind('.');
  return dot == std::string::npos ? "" : path.substr(0, dot);
}

/// Remembers the module's path as the checkpoint spells it.
void spell(PlanEntry& entry, const std::string& name, const TensorInfo& info) {
  if (info.name.size() > name.size() && info.name.ends_with("." + name))
    entry.source_path = info.name.substr(0, info.name.size() - name.size() - 1);
}

std::uint64_t bytes_of(const TensorInfo& info, const std::vector<std::int64_t>& shape) {
  std::int64_t all = 1, part = 1;
  for (const auto extent : info.shape) all *= extent;
  for (const auto extent : shape) part *= extent;
  return all ? info.bytes / static_cast<std::uint64_t>(all) * static_cast<std::uint64_t>(part) : 0;
}

}  // namespace

std::string join_path(const std::string& path, const std::string& name) {
  return path.empty() ? name : path + "." + name;
}

std::string last_of(const std::string& path) {
  const auto dot = path.rfind('.');
  return dot == std::string::npos ? path : path.substr(dot + 1);
}

TensorPlanner::Presence TensorPlanner::presence(const ModuleSpec& spec, const Quantizer& quantizer,
                                                const QuantConfig& config) const {
  bool marked = false;
  for (const auto& tensor : quantizer.tensors(spec, config)) {
    if (tensor.name == "weight" || tensor.name == "bias") continue;
    marked = true;
    if (source_.find(join_path(spec.path, tensor.name))) return Presence::quantized;
  }
  if (!marked) return Presence::unmarked;
  return source_.find(join_path(spec.path, "weight")) ? Presence::dense : Presence::neither;
}

void TensorPlanner::derive(const PlanEntry& entry) {
  if (!source_.known()) return;
  for (const auto& part : entry.parts)
    derived_.emplace(join_path(entry.spec.path, part.to),
                     Derived{join_path(entry.spec.path, part.from), part.to, part.region});
}

void TensorPlanner::take_quantized(PlanEntry& entry) {
  const auto& spec = entry.spec;
  const auto element = static_cast<std::uint64_t>(c10::elementSize(request_.dtype));
  const auto weights =
      static_cast<std::uint64_t>(spec.in_features) * static_cast<std::uint64_t>(spec.out_features);
  entry.bytes_before =
      (weights + (spec.bias ? static_cast<std::uint64_t>(spec.out_features) : 0)) * element;
  const auto specs = call_plugin(entry.plugin, spec.path,
                                 [&] { return entry.quantizer->tensors(spec, *entry.config); });
  for (const auto& tensor : specs) entry.bytes_after += tensor.bytes;
  if (!source_.known()) return;
  if (!request_.pre_quantized) {
    if (spec.input_major)
      take(entry, "weight", {spec.in_features, spec.out_features}, true, kTransposed);
    else
      take(entry, "weight", {spec.out_features, spec.in_features}, true);
    if (spec.bias) take(entry, "bias", {spec.out_features}, true);
    return;
  }
  entry.bytes_after = 0;
  for (const auto& tensor : specs) {
    const auto* info = source_.find(join_path(spec.path, tensor.name));
    if (!info) {
      if (tensor.required) plan_.missing.push_back(quote(join_path(spec.path, tensor.name)));
      continue;
    }
    check_shape(tensor, *info);
    add(entry, tensor.name, info);
    entry.tensors.back().finite = tensor.finite && !request_.allow_nonfinite;
    entry.tensors.back().examined = tensor.examined;
    entry.bytes_after += info->bytes;
  }
}

void TensorPlanner::check_shape(const TensorSpec& tensor, const TensorInfo& info) {
  if (!tensor.dtypes.empty() && std::find(tensor.dtypes.begin(), tensor.dtypes.end(),
                                          scalar_type(info.dtype)) == tensor.dtypes.end()) {
    std::string allowed;
    for (const auto dtype : tensor.dtypes)
      allowed += (allowed.empty() ? "" : " or ") + std::string(name_of(dtype_of(dtype)));
    plan_.mismatched.push_back(quote(info.name) + " is " + std::string(name_of(info.dtype)) +
                               ", expected " + allowed);
  } else if (tensor.shape && *tensor.shape != info.shape) {
    plan_.mismatched.push_back(quote(info.name) + " is " + shape_text(info.shape) + ", expected " +
                               shape_text(*tensor.shape));
  }
}

void TensorPlanner::take_dense(PlanEntry& entry, const nn::Block& block) {
  const auto element = [&](const at::Tensor& t) {
    return static_cast<std::uint64_t>(t.numel()) * c10::elementSize(t.scalar_type());
  };
  for (const auto& [name, tensor] : block.own_tensors()) {
    const std::string full = join_path(entry.spec.path, name);
    if (tied_.contains(full)) {
      if (const auto* info = source_.find(full)) {
        source_.take(info);
        plan_.bytes_unused += info->bytes;
        plan_.notes.push_back(quote(full) +
                              " is in the checkpoint although the config ties it to " +
                              quote(tied_.at(full)) + ", which is used");
      }
      if (entry.reason.empty()) entry.reason = "tied to " + tied_.at(full);
      continue;
    }
    entry.bytes_before += element(tensor);
    entry.bytes_after += element(tensor);
    if (!source_.known()) continue;
    if (source_.find(full) || !take_parts(entry, name, tensor, block))
      take(entry, name, tensor.sizes().vec(), tensor.is_floating_point());
  }
  if (entry.reason.empty()) entry.reason = "no method";
}

void TensorPlanner::check_unscaled(const TensorInfo& info, const std::string& full) {
  if (size_of(info.dtype) > 1) return;
  for (const char* end : {"_scale", "_scale_inv", "_scale_2"})
    if (const auto* scale = source_.find(full + end)) {
      plan_.mismatched.push_back(quote(info.name) + " is " + std::string(name_of(info.dtype)) +
                                 " in the scale " + quote(scale->name) +
                                 ", expected the weights themselves");
      return;
    }
}

void TensorPlanner::take(PlanEntry& entry, const std::string& name, std::vector<std::int64_t> shape,
                         bool float_only, std::optional<nn::Region> region) {
  const std::string full = join_path(entry.spec.path, name);
  const auto* info = source_.find(full);
  const Derived* derived = nullptr;
  if (!info)
    if (const auto at = derived_.find(full); at != derived_.end()) {
      derived = &at->second;
      info = source_.find(derived->from);
      region = derived->region;
    }
  if (!info) {
    plan_.missing.push_back(quote(full));
    return;
  }
  const auto found = derived ? region->shape_in(info->shape) : info->shape;
  if (found != shape)
    plan_.mismatched.push_back(quote(info->name) + " is " + shape_text(info->shape) +
                               ", expected " + shape_text(shape) +
                               (derived ? " inside it, for " + quote(full) : ""));
  else if (float_only && !is_float(info->dtype))
    plan_.mismatched.push_back(quote(info->name) + " is " + std::string(name_of(info->dtype)) +
                               ", expected a float type");
  else if (float_only)
    check_unscaled(*info, derived ? derived->from : full);
  std::uint64_t bytes = info->bytes;
  if (derived) {
    bytes = bytes_of(*info, shape);
    // "<experts>.gate_up_proj" -> "<experts>.3.gate_proj"
    const auto last_dot = info->name.rfind('.');
    entry.source_path = info->name.substr(0, last_dot + 1) + parent_of(derived->to);
  } else {
    spell(entry, name, *info);
  }
  source_.take(info);
  entry.tensors.push_back({name, info->name, bytes, region, std::nullopt});
}

bool TensorPlanner::take_parts(PlanEntry& entry, const std::string& name, const at::Tensor& tensor,
                               const nn::Block& block) {
  if (parts_of_ != &block) {
    parts_ = block.parts();
    parts_of_ = &block;
  }
  bool any = false;
  for (const auto& part : parts_)
    any = any || (part.from == name && source_.find(join_path(entry.spec.path, part.to)));
  if (!any) return false;
  for (const auto& part : parts_) {
    if (part.from != name) continue;
    const std::string full = join_path(entry.spec.path, part.to);
    const auto* info = source_.find(full);
    if (!info) {
      plan_.missing.push_back(quote(full));
      continue;
    }
    if (const auto shape = part.region.shape_in(tensor.sizes()); shape != info->shape)
      plan_.mismatched.push_back(quote(info->name) + " is " + shape_text(info->shape) +
                                 ", expected " + shape_text(shape));
    else if (!is_float(info->dtype))
      plan_.mismatched.push_back(quote(info->name) + " is " + std::string(name_of(info->dtype)) +
                                 ", expected a float type");
    else
      check_unscaled(*info, full);
    source_.take(info);
    entry.tensors.push_back({name, info->name, info->bytes, std::nullopt, part.region});
  }
  return true;
}

void TensorPlanner::add(PlanEntry& entry, const std::string& name, const TensorInfo* info) {
  source_.take(info);
  spell(entry, name, *info);
  entry.tensors.push_back({name, info->name, info->bytes, std::nullopt, std::nullopt});
}

}  // namespace graft
