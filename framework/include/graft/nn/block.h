#pragma once

#include <torch/nn/module.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "graft/export.h"
#include "graft/module_spec.h"
#include "graft/nn/tensor_part.h"

namespace graft::nn {

template <class I>
class Slot;

/// A module whose children can be replaced and whose tensors can be filled.
///
/// LibTorch keeps a child (and a tensor) twice: in the registered list and in the member that
/// forward uses; replace_module() changes only the first. A Block's replaceable children are Slots
/// and its tensors are `own`ed, so that both always change together.
/// Invariant: slot pointer == registered child, member tensor == registered parameter.
/// Make blocks with std::make_shared; they are neither copied nor moved. Not thread-safe while
/// being changed.
class GRAFT_API Block : public torch::nn::Module {
 public:
  /// `class_name` is the module's class as Transformers names it; registries and plans use it.
  explicit Block(std::string class_name);
  ~Block() override;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  const std::string& class_name() const { return name(); }

  /// Puts `next` into the slot `name`. Throws Error(usage) naming both when there is no such slot
  /// or the interface does not fit; nothing has changed then.
  void replace_child(const std::string& name, std::shared_ptr<torch::nn::Module> next);
  bool has_slot(std::string_view name) const { return slots_.find(name) != slots_.end(); }

  /// The child in the slot `name`; nullptr when there is none.
  std::shared_ptr<torch::nn::Module> child(std::string_view name) const;

  /// Own tensors (not the children's) in the order they were declared; undefined ones left out.
  std::vector<std::pair<std::string, torch::Tensor>> own_tensors() const;
  /// Replaces an own tensor, member and registered parameter together, by one of the same shape
  /// (any dtype and device): from meta to real data. Throws Error(model) when the shape differs.
  void set_tensor(std::string_view name, torch::Tensor value);

  using torch::nn::Module::to;
  /// Children and own tensors to another device, here through set_tensor(). A module that keeps more
  /// than its own tensors overrides it.
  void to(torch::Device device, bool non_blocking = false) override;

  /// Where the module runs in a model whose parts lie on several devices; absent: where its input
  /// is. dispatch_model() sets it, and Model::to() forgets it.
  const std::optional<torch::Device>& execution_device() const { return execution_device_; }
  void set_execution_device(std::optional<torch::Device> device) { execution_device_ = device; }

  /// How the own tensors divide into those of a replacement with a module for each part (an
  /// expert). Checkpoints may hold either form. Empty: they do not divide.
  virtual std::vector<TensorPart> parts() const { return {}; }

  /// Fills in what decisions may depend on; `path` and `device` are the caller's.
  virtual void describe(ModuleSpec& spec) const;

 protected:
  /// Declares the own tensor `name`, kept in `member`. An undefined `initial` declares an absent
  /// one.
  void own(std::string name, torch::Tensor& member, torch::Tensor initial);

 private:
  template <class I>
  friend class Slot;
  struct SlotAccess {
    std::function<bool(const std::shared_ptr<torch::nn::Module>&)> rebind;
    std::function<std::shared_ptr<torch::nn::Module>()> child;
  };
  void add_slot(const std::string& name, std::shared_ptr<torch::nn::Module> child,
                SlotAccess access);

  std::map<std::string, SlotAccess, std::less<>> slots_;
  std::map<std::string, torch::Tensor*, std::less<>> owned_;
  std::optional<torch::Device> execution_device_;
};

/// A replaceable child of the Block it is a member of; `I` is the interface that forward() calls,
/// such as Unary. Calls go straight through the pointer: no look-up, one virtual call.
template <class I>
class Slot {
 public:
  Slot(Block& parent, const std::string& name, std::shared_ptr<I> child)
      : child_(std::move(child)) {
    parent.add_slot(name, child_,
                    {[this](const std::shared_ptr<torch::nn::Module>& next) {
                       auto fits = std::dynamic_pointer_cast<I>(next);
                       if (!fits) return false;
                       child_ = std::move(fits);
                       return true;
                     },
                     [this]() -> std::shared_ptr<torch::nn::Module> { return child_; }});
  }
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;

  I* operator->() const { return child_.get(); }
  I& operator*() const { return *child_; }
  const std::shared_ptr<I>& get() const { return child_; }

 private:
  std::shared_ptr<I> child_;
};

/// Slots "0".."n-1" under one name, as a ModuleList has them: "layers.0".
template <class I>
class SlotList {
 public:
  SlotList(Block& parent, const std::string& name)
      : list_(parent, name, std::make_shared<Block>("ModuleList")) {}

  void append(std::shared_ptr<I> child) {
    slots_.push_back(
        std::make_unique<Slot<I>>(*list_, std::to_string(slots_.size()), std::move(child)));
  }
  std::size_t size() const { return slots_.size(); }
  I& operator[](std::size_t i) const { return **slots_[i]; }

 private:
  Slot<Block> list_;
  std::vector<std::unique_ptr<Slot<I>>> slots_;
};

}  // namespace graft::nn
