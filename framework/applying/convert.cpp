#include "applying/convert.h"

#include <ATen/ATen.h>

#include <map>
#include <set>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "applying/checkpoint_tensors.h"
#include "applying/staging.h"
#include "applying/swaps.h"
#include "graft/error.h"
#include "graft/module_graph.h"
#include "graft/nn/layers.h"
#include "graft/quantizer.h"
#include "planning/placing.h"
#include "planning/settling.h"
#include "plugins/call.h"

namespace graft {
namespace {

std::shared_ptr<nn::Block> quantized(const PlanEntry& entry, Tensors dense,
                                     const Context& context) {
  const ModuleGroup alone{{{entry.spec, entry.config, std::move(dense)}}, {}};
  auto result =
      call_plugin(entry.plugin, entry.spec.path, context, [&](const Context& guarded) {
        return entry.quantizer->quantize(alone, guarded);
      });
  auto made = result.modules.size() == 1 ? result.modules[0] : nullptr;
  check_made(entry, made, /*on_meta=*/false);
  return made;
}

}  // namespace

void return_freed_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

void convert_on_meta(const std::shared_ptr<nn::Block>& root, const Plan& plan,
                     const Observer& observer) {
  Swaps swaps(root);
  for (const auto& entry : plan.entries) {
    if (entry.action != Action::quantize) continue;
    for (const auto& [name, tensor] : block_at(root, entry.spec.path).own_tensors())
      if (!tensor.is_meta())
        throw Error(ErrorKind::usage, "the module's " + quote(name) +
                                          " is in memory and would be lost: it cannot be converted "
                                          "on meta")
            .at(entry.spec.path)
            .hint("convert it with postprocess_model, which keeps the values");
    auto next = call_plugin(entry.plugin, entry.spec.path,
                            [&] { return entry.quantizer->build(entry.spec, *entry.config); });
    check_made(entry, next, /*on_meta=*/true);
    swaps.swap_everywhere(entry, next);
  }
  for (const auto& entry : plan.entries)
    if (entry.action == Action::quantize) tell(observer, entry, entry.replacement);
  swaps.keep();
}

void fill_from(const std::shared_ptr<nn::Block>& root, const Plan& plan,
               const Checkpoint& checkpoint, const Context& context, const Observer& observer,
               FillTo to) {
  std::map<std::string, Staging> staging;  // by device
  const auto staging_for = [&](const PlanEntry& entry) -> Staging* {
    const auto& device = entry.spec.device;
    if (to == FillTo::cpu || device.is_cpu()) return nullptr;
    return &staging.try_emplace(device.str(), device).first->second;
  };
  const std::uint64_t total = plan.bytes_taken();
  constexpr std::uint64_t kTrimBytes = 16 << 20;
  std::uint64_t done = 0, trimmed = 0;
  for (const auto& entry : plan.entries) {
    if (entry.action == Action::restructure) continue;
    context.advance("load", done, total);
    if (done - trimmed >= kTrimBytes) {
      return_freed_memory();
      trimmed = done;
    }
    const bool kept = entry.action == Action::keep;
    Staging* const on_its_way = staging_for(entry);
    Tensors tensors = read_all(checkpoint, entry, kept ? &block_at(root, entry.spec.path) : nullptr,
                               kept ? on_its_way : nullptr);
    for (const auto& planned : entry.tensors) {
      if (planned.finite && !planned.examined)
        require_finite(*tensors.find(planned.name), planned.source);
      done += planned.bytes;
    }
    if (kept) {
      nn::Block& block = block_at(root, entry.spec.path);
      // The skeleton has the plan's dtype but where a block insists on another.
      for (const auto& [name, like] : block.own_tensors())
        if (const auto* tensor = tensors.find(name))
          block.set_tensor(name, in_dtype(*tensor, like.scalar_type()));
    } else if (plan.pre_quantized) {
      call_plugin(entry.plugin, entry.spec.path, [&] {
        nn::Block& block = block_at(root, entry.spec.path);
        entry.quantizer->fill(block, *entry.config, tensors);
        if (on_its_way) block.to(on_its_way->device());
      });
    } else {
      Tensors dense;
      for (const auto& [name, tensor] : tensors) dense.set(name, in_dtype(tensor, plan.dtype));
      tensors = {};
      const auto next = quantized(entry, std::move(dense), context);
      if (on_its_way)
        call_plugin(entry.plugin, entry.spec.path, [&] { next->to(on_its_way->device()); });
      Swaps swaps(root);
      swaps.swap_everywhere(entry, next);
      tell(observer, entry, class_name_of(*next));
      swaps.keep();
    }
  }
  tie(root);
  return_freed_memory();
  context.advance("load", total, total);
}

void fill_kept(const std::shared_ptr<nn::Block>& root, const Plan& plan,
               const Checkpoint& checkpoint, const Context& context) {
  Plan kept = plan;
  std::erase_if(kept.entries,
                [](const PlanEntry& entry) { return entry.action == Action::quantize; });
  fill_from(root, kept, checkpoint, context, {}, FillTo::cpu);
}

void fill_dense(const std::shared_ptr<nn::Block>& root, const Plan& plan,
                const Checkpoint& checkpoint, const Context& context) {
  fill_kept(root, plan, checkpoint, context);
  for (const auto& entry : plan.entries) {
    if (entry.action != Action::quantize) continue;
    nn::Block& block = block_at(root, entry.spec.path);
    for (const auto& [name, tensor] : read_all(checkpoint, entry, &block)) {
      const bool turned = entry.spec.input_major && name == "weight";
      const auto value = in_dtype(turned ? tensor.t().contiguous() : tensor, plan.dtype);
      block.set_tensor(name, value);
      for (const auto& path : entry.also) block_at(root, path).set_tensor(name, value);
    }
  }
  verify_filled(root);
}

void quantize_in_place(const std::shared_ptr<nn::Block>& root, const Plan& plan,
                       const Context& context, const Observer& observer) {
  const std::size_t total = plan.count(Action::quantize);
  std::size_t done = 0;
  for (const auto& entry : plan.entries) {
    if (entry.action != Action::quantize) continue;
    context.advance("quantize", done++, total);
    if (is_converted(entry, root)) continue;  // by a call that was interrupted
    Tensors dense = dense_tensors(block_at(root, entry.spec.path), plan.dtype);
    const auto next = quantized(entry, std::move(dense), context);
    Swaps swaps(root);
    swaps.swap_everywhere(entry, next);
    tell(observer, entry, class_name_of(*next));
    swaps.keep();
  }
  context.advance("quantize", total, total);
}

void dispatch_model(const std::shared_ptr<nn::Block>& root, const Plan& plan) {
  const auto devices = plan.devices.devices();
  if (devices.size() < 2) return;
  for (const auto& path : parts_of(root))
    block_at(root, path).set_execution_device(plan.devices.of(path));
  // A tied tensor is there once more on a device of its own.
  if (const auto* model = dynamic_cast<const Model*>(root.get()))
    for (const auto& tied : model->tied_tensors()) {
      const auto [path, name] = split_name(tied.alias);
      const auto tensor = tensor_at(root, tied.alias);
      if (tensor.defined())
        block_at(root, path).set_tensor(name, tensor.to(*plan.devices.of(path)));
    }
}

void move_to_devices(const std::shared_ptr<nn::Block>& root, const Plan& plan) {
  for (const auto& entry : plan.entries)
    if (entry.action != Action::restructure && !entry.spec.device.is_cpu())
      block_at(root, entry.spec.path).to(entry.spec.device);
  tie(root);
}

void tie(const std::shared_ptr<nn::Block>& root) {
  const auto* model = dynamic_cast<const Model*>(root.get());
  if (!model) return;
  for (const auto& tied : model->tied_tensors()) {
    const auto [path, name] = split_name(tied.alias);
    const auto tensor = tensor_at(root, tied.owner);
    if (tensor.defined()) block_at(root, path).set_tensor(name, tensor);
  }
}

std::string tensor_on_meta(const std::shared_ptr<nn::Block>& root) {
  for (const auto& [path, module] : named_modules(root))
    if (const auto* block = dynamic_cast<const nn::Block*>(module.get()))
      for (const auto& [name, tensor] : block->own_tensors())
        if (tensor.is_meta()) return path.empty() ? name : path + "." + name;
  return {};
}

void verify_filled(const std::shared_ptr<nn::Block>& root) {
  if (const auto name = tensor_on_meta(root); !name.empty())
    throw Error(ErrorKind::internal, "the tensor was never filled").at(name);
}

}  // namespace graft
