#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "graft/checkpoint.h"

namespace graft {

/// Names of the checkpoint as the model sees them: a prefix that the file has and the model lacks
/// is taken off. Remembers what has been taken.
class SourceNames {
 public:
  SourceNames(const Checkpoint* checkpoint, const std::vector<std::string>& prefixes) {
    checkpoint_ = checkpoint;
    if (!checkpoint) return;
    for (const auto& info : checkpoint->tensors()) {
      std::string_view name = info.name;
      for (const auto& prefix : prefixes)
        if (name.starts_with(prefix)) {
          name.remove_prefix(prefix.size());
          break;
        }
      // A name that is the model's as it stands counts before one that becomes it.
      const auto [at, added] = by_name_.emplace(std::string(name), &info);
      if (!added && info.name == name) at->second = &info;
    }
  }

  bool known() const { return checkpoint_ != nullptr; }
  const TensorInfo* find(const std::string& name) const {
    const auto at = by_name_.find(name);
    return at == by_name_.end() ? nullptr : at->second;
  }
  void take(const TensorInfo* info) { taken_.insert(info); }
  std::vector<const TensorInfo*> rest() const {
    std::vector<const TensorInfo*> out;
    if (checkpoint_)
      for (const auto& info : checkpoint_->tensors())
        if (!taken_.contains(&info)) out.push_back(&info);
    return out;
  }

 private:
  const Checkpoint* checkpoint_ = nullptr;
  std::map<std::string, const TensorInfo*> by_name_;
  std::set<const TensorInfo*> taken_;
};

}  // namespace graft
