#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "graft/checkpoint.h"
#include "graft/model_quantizer.h"
#include "graft/nn/block.h"
#include "graft/plan.h"
#include "graft/tensors.h"

namespace graft {

class Staging;

/// Swaps modules and puts them back unless it is told to keep them.
class Swaps {
 public:
  explicit Swaps(const std::shared_ptr<nn::Block>& root) : root_(root) {}
  Swaps(const Swaps&) = delete;
  Swaps& operator=(const Swaps&) = delete;
  ~Swaps();

  void swap(const std::string& path, const std::shared_ptr<torch::nn::Module>& next);
  /// At each path of the entry.
  void swap_everywhere(const PlanEntry& entry, const std::shared_ptr<torch::nn::Module>& next);
  void keep() { kept_ = true; }

 private:
  std::shared_ptr<nn::Block> root_;
  std::vector<std::pair<std::string, std::shared_ptr<torch::nn::Module>>> done_;
  bool kept_ = false;
};

void tell(const Observer& observer, const PlanEntry& entry, const std::string& new_class);

/// Throws Error(usage) when there is none.
std::shared_ptr<torch::nn::Module> module_at(const std::shared_ptr<nn::Block>& root,
                                             const std::string& path);
/// The same, of a block; Error(internal) for another module.
nn::Block& block_at(const std::shared_ptr<nn::Block>& root, const std::string& path);

/// "model.norm.weight" as the path of the module and the name of its tensor.
std::pair<std::string, std::string> split_name(const std::string& name);
/// The tensor of that name, undefined when its block has none.
at::Tensor tensor_at(const std::shared_ptr<nn::Block>& root, const std::string& name);

/// Whether the entry's module is its replacement already. One of the same class counts as not.
bool is_converted(const PlanEntry& entry, const std::shared_ptr<nn::Block>& root);

/// The tensors of an entry as the checkpoint has them, on the device of `staging` or on the CPU;
/// parts are joined as in `like`, which an entry without parts does not need.
Tensors read_all(const Checkpoint& checkpoint, const PlanEntry& entry, const nn::Block* like,
                 Staging* staging = nullptr);

/// The tensors of a dense module as quantizers take them: weights [N, K], floats in `dtype`.
Tensors dense_tensors(const nn::Block& block, at::ScalarType dtype);

/// Floats take `dtype`; other types keep theirs.
at::Tensor in_dtype(const at::Tensor& tensor, at::ScalarType dtype);

/// Checks what a plugin made in the place of `entry`: the class it announced, all on meta or nothing
/// of it. Throws Error(plugin).
void check_made(const PlanEntry& entry, const std::shared_ptr<nn::Block>& made, bool on_meta);

}  // namespace graft
