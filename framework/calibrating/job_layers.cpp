#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <chrono>

#include "calibrating/job.h"
#include "calibrating/journal.h"
#include "calibrating/polish.h"
#include "graft/error.h"
#include "graft/ranks.h"
#include "plugins/one_torch_thread.h"
#include "running/each_on_pool.h"

namespace graft::calibration_job {
namespace {

/// What stands in for modules while a layer is run again in this thread.
using StandIns = std::map<const Member*, at::Tensor>;
thread_local const StandIns* stand_ins = nullptr;
/// The one behind which the layer need not go on: Reached is thrown with its output.
thread_local const Member* last_needed = nullptr;

struct Reached {
  at::Tensor output;
};

class StandInsHere {
 public:
  explicit StandInsHere(const StandIns& here, const Member* last = nullptr) {
    stand_ins = &here;
    last_needed = last;
  }
  StandInsHere(const StandInsHere&) = delete;
  StandInsHere& operator=(const StandInsHere&) = delete;
  ~StandInsHere() {
    stand_ins = nullptr;
    last_needed = nullptr;
  }
};

}  // namespace

/// A batch's way through a layer: with modules as they are made, and again if they are polished.
at::Tensor Job::through_layer(std::size_t layer, const at::Tensor& x,
                              const Batch::LayerForward& forward) {
  Traveller& mine = *running_;
  mine.layer = layer + 1;
  mine.forward = &forward;
  mine.layer_input = x;
  if (how_.polish_steps > 0 && !mine.dense_input.defined()) mine.dense_input = x;
  auto y = forward(x);
  if (how_.polish_steps > 0) {
    mine.stop = Stop{mine.layer, Stop::end, 0};
    mine.fiber->leave();
    if (abandoned_) throw Abandoned();
    if (changed_.at(mine.layer)) {
      mine.again = true;
      y = forward(x);
      mine.again = false;
    }
  }
  mine.forward = nullptr;
  mine.layer_input = at::Tensor();
  return y;
}

/// What the dense model has there, for inputs and outputs that are divided as those of this one.
at::Tensor Job::dense_weight(const Group& group, const Member& member) const {
  auto weight = dense_of(member).at("weight").to(at::kFloat);
  if (group.divisor.defined()) weight = weight * group.divisor;
  if (member.divided_by.defined()) weight = weight / member.divided_by.unsqueeze(1);
  return weight;
}

/// What a module gives for x while its layer is run again in this thread; undefined at other times.
at::Tensor Job::stand_in(const Group& group, const Member& member, const at::Tensor& x) const {
  if (!stand_ins) return {};
  const auto found = stand_ins->find(&member);
  // No batch came to it before; dense, it has no part in what is wrong.
  const auto weight = found != stand_ins->end() ? found->second : dense_weight(group, member);
  at::Tensor bias;
  for (const auto& [name, tensor] : (member.made ? member.made : member.dense)->own_tensors())
    if (name == "bias") bias = tensor;
  if (bias.defined() && bias.is_meta()) bias = dense_of(member).at("bias");
  auto y = at::linear(x, weight.to(x.scalar_type()),
                      bias.defined() ? bias.to(x.scalar_type()) : bias);
  if (&member == last_needed) throw Reached{std::move(y)};
  return y;
}

/// The last module of the block that the group is in, whose output is the block's; null: it is the
/// group's own, or is not known.
const Member* Job::last_of_block(std::size_t group) const {
  const auto parent_of = [](const std::string& path) { return path.substr(0, path.rfind('.')); };
  const auto parent = parent_of(groups_[group].members.front().entry->spec.path);
  const Member* last = nullptr;
  for (std::size_t g = group + 1; g < groups_.size(); ++g)
    for (const auto& member : groups_[g].members)
      if (parent_of(member.entry->spec.path) == parent) last = &member;
  return last;
}

/// ModuleGroup::block_error of the group that batches wait for.
std::function<double(const std::vector<at::Tensor>&)> Job::block_error(const Stop& stop) {
  const Group& group = groups_[stop.group];
  const Member* last = last_of_block(stop.group);
  if (stop.phase != Stop::inside || !last) return {};
  auto here = std::make_shared<StandIns>();  // but for the group's own
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    Group& other = groups_[g];
    if (other.done && other.layer == stop.layer && !other.in_memory) bring_back(other);
    for (const auto& member : other.members)
      if (other.done && other.layer == stop.layer)
        (*here)[&member] = call_for(
            *member.entry, [&] { return member.entry->quantizer->dequantize(*member.made); });
      else if (&member == last)
        (*here)[&member] = dense_weight(other, member);
  }
  const auto outputs = [this, last](const StandIns& modules) {
    std::vector<at::Tensor> out(travellers_.size());
    each_on_pool(static_cast<std::int64_t>(out.size()), [&](std::size_t i) {
      const Traveller& traveller = travellers_[i];
      if (!traveller.forward) return;
      const StandInsHere guard(modules, last);
      try {
        (*traveller.forward)(traveller.layer_input);  // an expert may get no token
      } catch (Reached& reached) {
        out[i] = std::move(reached.output);
      }
    });
    return out;
  };
  StandIns dense = *here;
  for (const auto& member : group.members) dense[&member] = dense_weight(group, member);
  return [this, &group, here, outputs, wanted = outputs(dense)](const auto& weights) {
    for (std::size_t m = 0; m < weights.size(); ++m) (*here)[&group.members[m]] = weights[m];
    const auto found = outputs(*here);
    const auto held = statistics_.held();
    const auto lost = at::zeros({statistics_.batches()}, at::kDouble);
    each_on_pool(static_cast<std::int64_t>(found.size()), [&](std::size_t i) {
      if (!found[i].defined()) return;
      lost[held.first + static_cast<std::int64_t>(i)] =
          (found[i].to(at::kFloat) - wanted[i].to(at::kFloat)).square().sum(at::kDouble);
    });
    if (how_.ranks) {
      std::vector<std::int64_t> bounds{0};
      for (const auto& range : statistics_.all_held()) bounds.push_back(range.last);
      how_.ranks->gather_rows(lost, bounds);
    }
    double sum = 0;
    for (std::int64_t i = 0; i < lost.size(0); ++i) sum += lost[i].template item<double>();
    return sum;
  };
}

/// All batches have come to the end of the layer, `layer` being the number that have begun.
void Job::polish_layer(std::size_t layer) {
  const OneTorchThread guard;
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::size_t> groups;
  StandIns dense;
  GroupRecord record;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    if (!groups_[g].done || groups_[g].layer != layer) continue;
    groups.push_back(g);
    if (!groups_[g].in_memory) bring_back(groups_[g]);
    for (const auto& path : paths_of(groups_[g])) record.row.modules.push_back(path);
    for (const auto& member : groups_[g].members)
      dense[&member] = dense_weight(groups_[g], member);
  }
  std::vector<at::Tensor> wanted(travellers_.size());
  each_on_pool(static_cast<std::int64_t>(wanted.size()), [&](std::size_t i) {
    const c10::InferenceMode normal_tensors(false);
    const c10::NoGradGuard no_gradients;
    const StandInsHere here(dense);
    if (travellers_[i].forward) wanted[i] = (*travellers_[i].forward)(travellers_[i].dense_input);
  });
  dense.clear();
  changed_[layer] = false;
  if (!groups.empty()) {
    const auto number = how_.journal ? how_.journal->number() : 0;
    auto found = next_record(record.row.modules);
    if (found) {
      record = std::move(*found);
    } else {
      polish_modules(layer, groups, wanted, record);
      record.layer->seconds =
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (how_.journal) how_.journal->keep(record);
    }
    if (!record.layer)
      throw Error(ErrorKind::model, "the record of a layer says nothing of its polishing");
    changed_[layer] = record.layer->left.empty();
    std::size_t place = 0;
    for (const auto g : groups) {
      Group& group = groups_[g];
      if (changed_[layer]) {
        group.record = number;
        group.place = place;
        group.recorded = record.row.modules;
        for (auto& member : group.members) member.divisor = at::Tensor();  // it is in the record
        bring_back(group, record);
      }
      place += group.members.size();
    }
    report_.layers.push_back(std::move(*record.layer));
  }
  for (std::size_t i = 0; i < wanted.size(); ++i)
    if (wanted[i].defined()) travellers_[i].dense_input = wanted[i];
  polished_ = layer;
}

/// Puts into `record` what polishing makes of the groups.
void Job::polish_modules(std::size_t layer, const std::vector<std::size_t>& groups,
                         const std::vector<at::Tensor>& wanted, GroupRecord& record) {
  LayerToPolish task;
  std::vector<const Member*> members;
  for (const auto g : groups)
    for (const auto& member : groups_[g].members) {
      members.push_back(&member);
      task.weights.push_back(call_for(
          *member.entry, [&] { return member.entry->quantizer->neighbours(*member.made); }));
      task.dense.push_back(dense_weight(groups_[g], member));
    }
  const auto held = statistics_.held();
  task.run = [&](std::int64_t i, const std::vector<at::Tensor>& weights) {
    const Traveller& traveller = travellers_[static_cast<std::size_t>(i - held.first)];
    StandIns here;
    for (std::size_t m = 0; m < members.size(); ++m) here[members[m]] = weights[m];
    const StandInsHere guard(here);
    return (*traveller.forward)(traveller.layer_input);
  };
  task.wanted = wanted;
  task.batches = statistics_.batches();
  task.held = statistics_.all_held();
  task.ranks = how_.ranks;
  task.seed = layer;
  task.steps = how_.polish_steps;
  task.proceed = [&] { context_.advance("calibrate", done_, groups_.size()); };
  const auto polished = polish(std::move(task));
  LayerReport& report = record.layer.emplace();
  report.layer = layer - 1;
  report.modules = record.row.modules;
  report.error_before = polished.error_before;
  report.error_after = polished.error_after;
  report.changed = polished.changed;
  report.left = polished.left;
  record.modules.resize(members.size());
  if (polished.moves.empty()) return;
  for (std::size_t m = 0; m < members.size(); ++m) {
    const PlanEntry& entry = *members[m]->entry;
    record.modules[m] = call_for(entry, [&] {
      const auto moved = entry.quantizer->moved(*members[m]->made, entry.spec, *entry.config,
                                                polished.moves[m]);
      return entry.quantizer->save(*moved, *entry.config);
    });
  }
}

}  // namespace graft::calibration_job
