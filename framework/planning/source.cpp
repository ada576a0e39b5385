#include "planning/source.h"

#include "graft/error.h"
#include "registry/name_match.h"

namespace graft {
namespace {

std::string name_in_model(std::string name, const std::vector<CheckpointPrefix>& prefixes,
                          const std::vector<CheckpointRename>& renames) {
  for (const auto& prefix : prefixes)
    if (name.starts_with(prefix.in_file))
      name = prefix.in_model + name.substr(prefix.in_file.size());
  for (const auto& rename : renames)
    if (const auto at = name.find(rename.in_file); at != std::string::npos)
      name.replace(at, rename.in_file.size(), rename.in_model);
  return name;
}

}  // namespace

Source::Source(const Checkpoint* checkpoint, const Model* model) {
  if (!checkpoint) return;
  known_ = true;
  std::vector<CheckpointPrefix> prefixes;
  std::vector<CheckpointRename> renames;
  if (model) {
    prefixes = model->checkpoint_prefixes();
    renames = model->checkpoint_renames();
    unused_ = model->unused_tensors();
  }
  // A name that is the model's already comes before one that has to be changed into it.
  std::vector<std::pair<std::string, const TensorInfo*>> changed;
  for (const auto& info : checkpoint->tensors()) {
    auto name = name_in_model(info.name, prefixes, renames);
    if (name == info.name)
      by_name_.emplace(std::move(name), &info);
    else
      changed.emplace_back(std::move(name), &info);
  }
  for (auto& [name, info] : changed)
    if (!by_name_.emplace(std::move(name), info).second) doubles_.push_back(info);
}

const TensorInfo* Source::find(const std::string& name) const {
  const auto at = by_name_.find(name);
  return at == by_name_.end() ? nullptr : at->second;
}

std::uint64_t Source::bytes_left() const {
  std::uint64_t bytes = 0;
  for (const auto& [name, info] : by_name_)
    if (!taken_.contains(info)) bytes += info->bytes;
  for (const auto* info : doubles_) bytes += info->bytes;
  return bytes;
}

void Source::rest(std::vector<UnloadedTensor>& unloaded,
                  std::vector<std::string>& unexpected) const {
  constexpr std::string_view kAll = ".*";
  std::vector<NamePattern> patterns;
  for (const auto& unused : unused_) patterns.emplace_back(unused.pattern);
  for (const auto& [name, info] : by_name_) {
    if (taken_.contains(info)) continue;
    std::size_t i = 0;
    while (i < patterns.size() && !patterns[i].matches(name)) ++i;
    if (i == patterns.size()) {
      unexpected.push_back(quote(info->name));
      continue;
    }
    std::string part = unused_[i].pattern;
    if (part.ends_with(kAll)) part.resize(part.size() - kAll.size());
    unloaded.push_back({info->name, unused_[i].reason, unused_[i].carried, std::move(part)});
  }
  for (const auto* info : doubles_) unexpected.push_back(quote(info->name));
}

std::vector<std::string> spellings_of(const std::string& path, const Model* model) {
  std::vector<std::string> out{path};
  if (!model) return out;
  std::string renamed = path + ".";  // so that a rename also fits the last part
  for (const auto& rename : model->checkpoint_renames())
    if (const auto at = renamed.find(rename.in_model); at != std::string::npos)
      renamed.replace(at, rename.in_model.size(), rename.in_file);
  renamed.pop_back();
  if (renamed != path) out.push_back(renamed);
  const std::size_t bare = out.size();
  for (const auto& prefix : model->checkpoint_prefixes())
    for (std::size_t i = 0; i < bare; ++i)
      if (out[i].starts_with(prefix.in_model))
        out.push_back(prefix.in_file + out[i].substr(prefix.in_model.size()));
  return out;
}

}  // namespace graft
