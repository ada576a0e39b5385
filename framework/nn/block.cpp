#include "graft/nn/block.h"

#include "graft/error.h"
#include "graft/nn/experts.h"
#include "graft/nn/unary.h"

namespace graft::nn {
namespace {

std::string shape_text(at::IntArrayRef shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

}  // namespace

Block::Block(std::string class_name) : torch::nn::Module(std::move(class_name)) {}
Block::~Block() = default;
Unary::~Unary() = default;
torch::Tensor Unary::divide_output(const torch::Tensor&) { return {}; }
torch::Tensor Unary::forward_segments(const torch::Tensor&, std::span<const Segment>) { return {}; }
Experts::~Experts() = default;

void Block::replace_child(const std::string& name, std::shared_ptr<torch::nn::Module> next) {
  if (!next) throw Error(ErrorKind::usage, "no replacement was given").at("child " + quote(name));
  const auto slot = slots_.find(name);
  if (slot == slots_.end()) {
    std::vector<std::string> names;
    for (const auto& entry : slots_) names.push_back(entry.first);
    Error error(ErrorKind::usage, class_name() + " has no replaceable child " + quote(name));
    if (const auto near = nearest_names(name, names); !near.empty())
      error.hint("did you mean " + near + "?");
    throw error;
  }
  const auto old = std::dynamic_pointer_cast<Block>(slot->second.child());
  if (!slot->second.rebind(next))
    throw Error(ErrorKind::usage, "a " + next->name() + " does not have the interface that " +
                                      class_name() + " calls its child " + quote(name) + " with");
  if (auto* block = dynamic_cast<Block*>(next.get()); block && old)
    block->set_execution_device(old->execution_device());
  replace_module(name, std::move(next));
}

std::shared_ptr<torch::nn::Module> Block::child(std::string_view name) const {
  const auto slot = slots_.find(name);
  return slot == slots_.end() ? nullptr : slot->second.child();
}

std::vector<std::pair<std::string, torch::Tensor>> Block::own_tensors() const {
  std::vector<std::pair<std::string, torch::Tensor>> out;
  for (const auto& entry : parameters_)
    if (entry.value().defined()) out.emplace_back(entry.key(), entry.value());
  return out;
}

void Block::set_tensor(std::string_view name, torch::Tensor value) {
  const auto owned = owned_.find(name);
  if (owned == owned_.end() || !owned->second->defined())
    throw Error(ErrorKind::internal, class_name() + " has no tensor " + quote(name));
  if (value.sizes() != owned->second->sizes())
    throw Error(ErrorKind::model, "wrong shape")
        .at("tensor " + quote(name))
        .expected(shape_text(owned->second->sizes()))
        .found(shape_text(value.sizes()));
  *owned->second = value;
  parameters_[owned->first] = std::move(value);
}

void Block::to(torch::Device device, bool non_blocking) {
  for (const auto& child : children()) child->to(device, non_blocking);
  for (const auto& [name, tensor] : own_tensors())
    set_tensor(name, tensor.to(device, non_blocking));
}

void Block::describe(ModuleSpec& spec) const { spec.class_name = class_name(); }

void Block::own(std::string name, torch::Tensor& member, torch::Tensor initial) {
  member = register_parameter(name, std::move(initial), /*requires_grad=*/false);
  owned_.emplace(std::move(name), &member);
}

void Block::add_slot(const std::string& name, std::shared_ptr<torch::nn::Module> child,
                     SlotAccess access) {
  if (!child)
    throw Error(ErrorKind::usage, "the slot " + quote(name) + " of a " + class_name() + " is empty")
        .hint("declare it with a module in it");
  register_module(name, std::move(child));
  slots_.emplace(name, std::move(access));
}

}  // namespace graft::nn
