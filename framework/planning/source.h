#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "graft/checkpoint.h"
#include "graft/model.h"
#include "graft/plan.h"

namespace graft {

/// The checkpoint's tensors under the names that the model has for them. Remembers what is taken.
class Source {
 public:
  /// `checkpoint` may be nullptr: nothing is known then. `model` may be: names are taken as they
  /// are.
  Source(const Checkpoint* checkpoint, const Model* model);

  bool known() const { return known_; }
  /// By the model's name; nullptr when absent.
  const TensorInfo* find(const std::string& name) const;
  void take(const TensorInfo* info) { taken_.insert(info); }
  std::uint64_t bytes_left() const;  ///< of what nothing took
  /// What nothing took, divided into what the model knows of and what it does not.
  void rest(std::vector<UnloadedTensor>& unloaded, std::vector<std::string>& unexpected) const;

 private:
  bool known_ = false;
  std::vector<UnusedTensors> unused_;
  std::map<std::string, const TensorInfo*> by_name_;
  std::vector<const TensorInfo*> doubles_;  ///< a second tensor under one name of the model
  std::set<const TensorInfo*> taken_;
};

/// `path` of a module and what checkpoints of `model` (may be nullptr) may call it instead:
/// "model.layers.0.mlp.gate", "model.layers.0.block_sparse_moe.gate".
std::vector<std::string> spellings_of(const std::string& path, const Model* model);

}  // namespace graft
