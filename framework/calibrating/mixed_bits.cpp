#include "calibrating/mixed_bits.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "graft/error.h"
#include "graft/rounding.h"
#include "plugins/call.h"

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
  for (const auto& [bits, entries] : entries_) {
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
      for (const auto& [name, tensor] : member.dense) dense.set(name, sampled_rows(tensor, kRun));
      auto spec = member.spec;
      spec.out_features = dense.at("weight").size(0);
      sample.members.push_back({std::move(spec), entry->second->config, std::move(dense)});
    }
    if (sample.members.size() < group.members.size()) continue;
    if (group.inputs.tokens > 0) {
      const auto result = call_plugin(first->plugin, first->spec.path,
                                      [&] { return first->quantizer->quantize(sample, context_); });
      double lost = 0, whole = 0;
      for (std::size_t i = 0; i < sample.members.size(); ++i) {
        const auto weight = sample.members[i].dense.at("weight").to(at::kFloat);
        const auto rounded = call_plugin(first->plugin, first->spec.path, [&] {
          return first->quantizer->dequantize(*result.modules.at(i));
        });
        const auto energies =
            output_energies({weight - rounded.to(at::kFloat), weight}, group.inputs.hessian);
        const double share = static_cast<double>(weight.size(0)) /
                             static_cast<double>(group.members[i].spec.out_features);
        lost += energies[0] / share;
        whole += energies[1] / share;
      }
      if (whole > 0 && std::isfinite(lost / whole)) choice.error = lost / whole;
    }
    found.by_bits[bits] = choice;
  }
  groups_.push_back(std::move(found));
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
