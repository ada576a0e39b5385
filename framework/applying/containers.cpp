#include "applying/containers.h"

#include <torch/nn/modules/container/moduledict.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <map>
#include <vector>

#include "graft/error.h"
#include "graft/module_graph.h"
#include "graft/nn/layers.h"

namespace graft {
namespace {

using torch::nn::Module;

/// The position of the child `name` among those that the container calls.
std::size_t index_of(const Module& parent, const std::string& name) {
  const auto names = parent.named_children().keys();
  return static_cast<std::size_t>(std::find(names.begin(), names.end(), name) - names.begin());
}

/// Shares the tensors.
std::shared_ptr<nn::Linear> adopted(const torch::nn::LinearImpl& linear) {
  auto next = std::make_shared<nn::Linear>(
      linear.weight.size(1), linear.weight.size(0), linear.bias.defined(),
      at::TensorOptions(at::kMeta).dtype(linear.weight.scalar_type()));
  next->set_tensor("weight", linear.weight.detach());
  if (linear.bias.defined()) next->set_tensor("bias", linear.bias.detach());
  return next;
}

}  // namespace

bool is_container(const Module& parent) {
  return dynamic_cast<const torch::nn::SequentialImpl*>(&parent) ||
         dynamic_cast<const torch::nn::ModuleListImpl*>(&parent) ||
         dynamic_cast<const torch::nn::ModuleDictImpl*>(&parent);
}

bool replace_in_container(Module& parent, const std::string& name,
                          const std::shared_ptr<Module>& next) {
  if (auto* dict = dynamic_cast<torch::nn::ModuleDictImpl*>(&parent)) {
    dict->update(std::vector<std::pair<std::string, std::shared_ptr<Module>>>{{name, next}});
    return true;
  }
  const auto index = static_cast<std::ptrdiff_t>(index_of(parent, name));
  if (auto* list = dynamic_cast<torch::nn::ModuleListImpl*>(&parent)) {
    *(list->begin() + index) = next;
  } else if (auto* sequence = dynamic_cast<torch::nn::SequentialImpl*>(&parent)) {
    const auto unary = std::dynamic_pointer_cast<nn::Unary>(next);
    if (!unary)
      throw Error(ErrorKind::usage, "a " + class_name_of(*next) +
                                        " does not have the interface that a Sequential calls its "
                                        "children with")
          .expected("a graft::nn::Unary");
    *(sequence->begin() + index) = torch::nn::AnyModule(unary);
  } else {
    return false;
  }
  parent.replace_module(name, next);
  return true;
}

std::size_t adopt_linears(const std::shared_ptr<Module>& root) {
  std::map<const Module*, std::shared_ptr<nn::Linear>> made;  // one, however many paths lead to it
  std::vector<std::pair<std::string, std::shared_ptr<Module>>> first, then;
  for (const auto& [path, module] : named_modules(root)) {
    const auto* linear = dynamic_cast<const torch::nn::LinearImpl*>(module.get());
    if (!linear) continue;
    auto& next = made[linear];
    if (!next) next = adopted(*linear);
    const bool lets_go = is_container(*get_module_from_name(root, path).parent);
    (lets_go ? then : first).emplace_back(path, next);
  }
  for (auto* swaps : {&first, &then})  // what may be refused comes first
    for (auto& [path, next] : *swaps) replace_at(root, path, next);
  return first.size() + then.size();
}

}  // namespace graft
