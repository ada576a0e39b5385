#include "calibrating/mixed_bits.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "applying/swaps.h"
#include "graft/error.h"
#include "graft/ranks.h"
#include "graft/rounding.h"
#include "plugins/call.h"
#include "plugins/one_torch_thread.h"
#include "running/each_on_pool.h"

namespace graft {
namespace {

void fill_unknown(std::vector<BitsChoices>& groups) {
  std::map<int, std::pair<double, int>> known;  // sum and count
  for (const auto& group : groups)
    for (const auto& [bits, choice] : group.by_bits)
      if (choice.error >= 0) {
        known[bits].first += choice.error;
        ++known[bits].second;
      }
  for (auto& group : groups)
    for (auto& [bits, choice] : group.by_bits)
      if (choice.error < 0)
        choice.error = known[bits].second ? known[bits].first / known[bits].second : 0;
}

/// Of the samples [B, T], four of [1, 128] spread over them, or what there is.
std::vector<at::Tensor> windows_of(const at::Tensor& ids) {
  constexpr std::int64_t kWindows = 4, kTokens = 128;
  const auto count = std::min(kWindows, ids.size(0));
  std::vector<at::Tensor> out;
  for (std::int64_t i = 0; i < count; ++i)
    out.push_back(ids.narrow(0, i * ids.size(0) / count, 1)
                      .narrow(1, 0, std::min(kTokens, ids.size(1))));
  return out;
}

at::Tensor logits_of(Model& model, const at::Tensor& window) {
  Batch batch;
  batch.input_ids = window;
  return model.forward(batch)[0];
}

/// The KL divergences of rows of logits [T, V], added up; few rows at once are in float32.
double divergence(const at::Tensor& reference, const at::Tensor& logits) {
  constexpr std::int64_t kRows = 16;
  double sum = 0;
  for (std::int64_t first = 0; first < reference.size(0); first += kRows) {
    const auto rows = std::min(kRows, reference.size(0) - first);
    const auto a = at::log_softmax(reference.narrow(0, first, rows).to(at::kFloat), -1);
    const auto b = at::log_softmax(logits.narrow(0, first, rows).to(at::kFloat), -1);
    sum += (a.exp() * (a - b)).sum(at::kDouble).item<double>();
  }
  return sum;
}

/// Completes what each rank has of every so-many-th number.
void gather_strided(std::vector<double>& numbers, Ranks& ranks) {
  const std::string mine(reinterpret_cast<const char*>(numbers.data()),
                         numbers.size() * sizeof(double));
  const auto all = ranks.gather(mine);
  for (std::size_t i = 0; i < numbers.size(); ++i)
    std::memcpy(&numbers[i], all[i % all.size()].data() + i * sizeof(double), sizeof(double));
}

}  // namespace

std::vector<int> choose_bits(std::vector<BitsChoices> groups, std::uint64_t most) {
  fill_unknown(groups);
  std::vector<std::map<int, BitsChoices::Choice>::const_iterator> chosen;
  std::uint64_t bytes = 0, all = 0;
  for (const auto& group : groups) {
    if (group.by_bits.empty())
      throw Error(ErrorKind::internal, "there are no bits to choose from")
          .at(group.modules.front());
    chosen.push_back(group.by_bits.begin());
    bytes += chosen.back()->second.bytes;
    all += group.by_bits.rbegin()->second.bytes;
  }
  if (bytes > most)
    throw Error(ErrorKind::usage, "no choice of bits is as small as that")
        .expected("at least " + std::to_string(bytes) + " bytes of quantized modules, at most " +
                  std::to_string(all))
        .found(std::to_string(most));
  while (true) {
    double best = 0;
    std::size_t where = 0;
    std::map<int, BitsChoices::Choice>::const_iterator to{};
    for (std::size_t g = 0; g < groups.size(); ++g)
      for (auto next = std::next(chosen[g]); next != groups[g].by_bits.end(); ++next) {
        const auto& now = chosen[g]->second;
        const auto& then = next->second;
        const auto more = then.bytes - std::min(then.bytes, now.bytes);
        if (bytes + more > most) continue;
        const double gain =
            (now.error - then.error) / static_cast<double>(std::max<std::uint64_t>(1, more));
        if (gain <= best) continue;
        best = gain;
        where = g;
        to = next;
      }
    if (best <= 0) break;
    bytes += to->second.bytes - std::min(to->second.bytes, chosen[where]->second.bytes);
    chosen[where] = to;
  }
  std::vector<int> out;
  for (const auto& choice : chosen) out.push_back(choice->first);
  return out;
}

BitsChooser::BitsChooser(const std::map<int, Plan>& plans, const Context& context)
    : context_(context) {
  for (const auto& [bits, plan] : plans)
    for (const auto& entry : plan.entries)
      if (entry.action == Action::quantize) entries_[bits][entry.spec.path] = &entry;
}

void BitsChooser::measure(const ModuleGroup& group) {
  constexpr std::int64_t kRun = 32;  // outputs whose zero points are whole words with any bits
  BitsChoices found;
  for (const auto& member : group.members) found.modules.push_back(member.spec.path);
  coarse_.emplace_back();
  for (const auto& [bits, entries] : entries_) {
    const bool fewest = bits == entries_.begin()->first;
    ModuleGroup sample;
    sample.inputs = group.inputs;
    sample.recipe = Recipe::fast;
    BitsChoices::Choice choice;
    const PlanEntry* first = nullptr;
    for (const auto& member : group.members) {
      const auto entry = entries.find(member.spec.path);
      if (entry == entries.end()) break;  // not with these bits
      if (!first) first = entry->second;
      choice.bytes += entry->second->bytes_after;
      Tensors dense;
      for (const auto& [name, tensor] : member.dense)
        dense.set(name, fewest ? tensor : sampled_rows(tensor, kRun));
      auto spec = member.spec;
      spec.out_features = dense.at("weight").size(0);
      sample.members.push_back({std::move(spec), entry->second->config, std::move(dense)});
    }
    if (sample.members.size() < group.members.size()) continue;
    if (group.inputs.tokens > 0) {
      const auto result =
          call_plugin(first->plugin, first->spec.path, context_, [&](const Context& guarded) {
            return first->quantizer->quantize(sample, guarded);
          });
      double lost = 0, whole = 0;
      for (std::size_t i = 0; i < sample.members.size(); ++i) {
        const auto rows_of = [&](const at::Tensor& all) {  // the same ones with all bits
          return (fewest ? sampled_rows(all, kRun) : all).to(at::kFloat);
        };
        const auto weight = rows_of(sample.members[i].dense.at("weight"));
        const auto rounded = rows_of(call_plugin(first->plugin, first->spec.path, [&] {
          return first->quantizer->dequantize(*result.modules.at(i));
        }));
        const auto energies = output_energies({weight - rounded, weight}, group.inputs.hessian);
        const double share = static_cast<double>(weight.size(0)) /
                             static_cast<double>(group.members[i].spec.out_features);
        lost += energies[0] / share;
        whole += energies[1] / share;
      }
      if (whole > 0 && std::isfinite(lost / whole)) choice.error = lost / whole;
      if (fewest) coarse_.back() = result.modules;
    }
    found.by_bits[bits] = choice;
  }
  groups_.push_back(std::move(found));
}

void BitsChooser::weigh(const std::shared_ptr<Model>& dense, const at::Tensor& ids, Ranks* ranks) {
  const c10::InferenceMode guard;
  const OneTorchThread one_thread;  // some of LibTorch's results depend on their number
  const auto windows = windows_of(ids);
  const auto count = static_cast<std::int64_t>(windows.size());
  std::vector<at::Tensor> reference(windows.size());
  each_on_pool(count, [&](std::size_t w) { reference[w] = logits_of(*dense, windows[w]); });
  const auto cost = [&] {  // of the model as it is
    std::vector<double> sums(windows.size());
    each_on_pool(count, [&](std::size_t w) {
      sums[w] = divergence(reference[w], logits_of(*dense, windows[w]));
    });
    double sum = 0;
    for (const double one : sums) sum += one;
    return sum / static_cast<double>(count * windows.front().size(1));
  };

  const auto& entries = entries_.begin()->second;  // with the fewest bits
  std::vector<double> costs(groups_.size(), -1);
  const auto many = ranks ? static_cast<std::size_t>(ranks->size()) : 1;
  const auto mine = ranks ? static_cast<std::size_t>(ranks->rank()) : 0;
  for (auto g = mine; g < groups_.size(); g += many) {
    context_.advance("weigh bits", g, groups_.size());
    std::vector<std::pair<nn::Block*, at::Tensor>> before;
    for (std::size_t i = 0; i < coarse_[g].size(); ++i) {
      const auto& entry = *entries.at(groups_[g].modules[i]);
      const auto weight =
          call_plugin(entry.plugin, entry.spec.path,
                      [&] { return entry.quantizer->dequantize(*coarse_[g][i]); });
      auto& block = block_at(dense, entry.spec.path);
      for (const auto& [name, tensor] : block.own_tensors())
        if (name == "weight") before.emplace_back(&block, tensor);
      block.set_tensor("weight", (entry.spec.input_major ? weight.t() : weight)
                                     .to(before.back().second.scalar_type()));
    }
    if (!before.empty()) costs[g] = cost();
    for (const auto& [block, weight] : before) block->set_tensor("weight", weight);
  }
  context_.advance("weigh bits", groups_.size(), groups_.size());
  if (ranks) gather_strided(costs, *ranks);
  coarse_.clear();
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    auto& by_bits = groups_[g].by_bits;
    const double error = by_bits.empty() ? -1 : by_bits.begin()->second.error;
    const bool known = error >= 0 && costs[g] >= 0 && std::isfinite(costs[g]);
    const double by_error = error > 0 ? costs[g] / error : 0;
    for (auto& [bits, choice] : by_bits)
      if (choice.error >= 0) choice.error = known ? choice.error * by_error : -1;
  }
}

std::vector<std::pair<std::string, int>> BitsChooser::choose(double bits_per_weight) {
  double weights = 0;
  for (const auto& [path, entry] : entries_.begin()->second)
    weights += static_cast<double>(entry->spec.in_features) *
               static_cast<double>(entry->spec.out_features);
  const double most = std::min(bits_per_weight * weights / 8, 1e18);  // infinity fits nowhere
  const auto bits = choose_bits(groups_, static_cast<std::uint64_t>(most));
  std::vector<std::pair<std::string, int>> out;
  for (std::size_t g = 0; g < groups_.size(); ++g)
    for (const auto& path : groups_[g].modules) {
      chosen_[path] = entries_.at(bits[g]).at(path);
      out.emplace_back(path, bits[g]);
    }
  return out;
}

void BitsChooser::check(const Plan& made) const {
  for (const auto& entry : made.entries) {
    if (entry.action != Action::quantize) continue;
    const auto& wanted = *chosen_.at(entry.spec.path);
    if (wanted.bytes_after != entry.bytes_after)
      throw Error(ErrorKind::usage, "the method takes no bits of their own for modules")
          .at(entry.spec.path)
          .expected(wanted.settings)
          .found(entry.settings);
  }
}

}  // namespace graft
