#include "calibrating/shared_statistics.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>

#include "graft/ranks.h"
#include "kernels/gram.h"

namespace graft {
namespace {

/// Rows of all inputs, and their width.
std::pair<std::int64_t, std::int64_t> extent(const std::vector<at::Tensor>& inputs) {
  std::int64_t rows = 0, k = 0;
  for (const auto& x : inputs) {
    if (!x.defined() || x.numel() == 0) continue;
    k = x.size(-1);
    rows += x.numel() / k;
  }
  return {rows, k};
}

}  // namespace

BatchRange SharedStatistics::held_by(int rank) const {
  const int size = ranks_ ? ranks_->size() : 1;
  return {batches_ * rank / size, batches_ * (rank + 1) / size};
}

BatchRange SharedStatistics::held() const { return held_by(ranks_ ? ranks_->rank() : 0); }

std::vector<BatchRange> SharedStatistics::all_held() const {
  std::vector<BatchRange> out;
  for (int rank = 0; rank < (ranks_ ? ranks_->size() : 1); ++rank) out.push_back(held_by(rank));
  return out;
}

void SharedStatistics::sum_up(std::size_t group, const std::vector<at::Tensor>& inputs) {
  own_ = {};
  sums_.clear();
  own_.group = static_cast<std::int64_t>(group);
  std::tie(own_.rows, own_.k) = extent(inputs);
  const auto range = held();
  for (const auto& node : nodes_of(batches_, range)) {
    sums_.emplace_back();
    if (!inputs.empty()) {  // or the text is over, and no batch got there
      const auto first = inputs.begin() + (node.first - range.first);
      sums_.back() = sum_of_products({first, first + (node.last - node.first)}, node);
    }
    own_.there.push_back(sums_.back().defined());
  }
}

std::vector<SharedStatistics::Told> SharedStatistics::tell(const Told& own) const {
  std::vector<std::int64_t> words{own.group, own.rows, own.k};
  words.insert(words.end(), own.there.begin(), own.there.end());
  std::vector<Told> out;
  for (const auto& bytes : ranks_->gather(
           {reinterpret_cast<const char*>(words.data()), words.size() * sizeof(std::int64_t)})) {
    std::vector<std::int64_t> said(bytes.size() / sizeof(std::int64_t));
    std::memcpy(said.data(), bytes.data(), said.size() * sizeof(std::int64_t));
    out.push_back({said[0], said[1], said[2], {said.begin() + 3, said.end()}});
  }
  return out;
}

std::optional<std::size_t> SharedStatistics::meet(std::optional<std::size_t> first,
                                                  const std::vector<at::Tensor>& inputs,
                                                  bool needed) {
  if (!ranks_) return first;
  Told own;
  if (first) own.group = static_cast<std::int64_t>(*first);
  if (needed && first) {
    // While it waits for other ranks' groups, nothing changes in what waits for this one.
    if (own_.group != own.group) sum_up(*first, inputs);
    own = own_;
  }
  told_ = tell(own);
  std::int64_t next = -1;
  for (const auto& told : told_)
    if (told.group >= 0 && (next < 0 || told.group < next)) next = told.group;
  met_.reset();
  if (next < 0) return std::nullopt;
  if (needed) met_ = static_cast<std::size_t>(next);
  return static_cast<std::size_t>(next);
}

InputStatistics SharedStatistics::of(std::size_t group, const std::vector<at::Tensor>& inputs) {
  if (!ranks_) return {second_moment(inputs), extent(inputs).first};
  if (met_ != group) {
    sum_up(group, inputs);
    told_ = tell(own_);
  }
  met_.reset();
  const auto is_of_it = [&](const Told& told) {
    return told.group == static_cast<std::int64_t>(group);
  };
  std::vector<BatchRange> nodes;
  std::vector<bool> there;
  std::vector<std::int64_t> bounds{0};
  std::int64_t rows = 0, k = 0;
  for (std::size_t rank = 0; rank < told_.size(); ++rank) {
    const auto its = nodes_of(batches_, held_by(static_cast<int>(rank)));
    const auto& told = told_[rank];
    bounds.push_back(bounds.back());
    for (std::size_t i = 0; i < its.size(); ++i) {
      nodes.push_back(its[i]);
      there.push_back(is_of_it(told) && told.there[i]);
      bounds.back() += there.back();
    }
    if (!is_of_it(told)) continue;
    rows += told.rows;
    k = std::max(k, told.k);
  }
  if (rows == 0) return {};
  const auto exchanged = at::empty(
      {bounds.back(), moment_tiles(k), kernels::kGramColumns, kernels::kGramColumns}, at::kFloat);
  if (is_of_it(own_)) {
    auto place = bounds[static_cast<std::size_t>(ranks_->rank())];
    for (auto& sum : sums_)
      if (sum.defined()) exchanged[place++].copy_(std::exchange(sum, {}));
    own_ = {};
    sums_.clear();
  }
  ranks_->gather_rows(exchanged, bounds);
  std::vector<at::Tensor> sums;
  std::int64_t place = 0;
  for (const bool is : there) sums.push_back(is ? exchanged[place++] : at::Tensor());
  return {second_moment(k, batches_, nodes, std::move(sums), rows), rows};
}

}  // namespace graft
