#include "calibrating/calibrate.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "applying/convert.h"
#include "applying/swaps.h"
#include "calibrating/fiber.h"
#include "calibrating/journal.h"
#include "calibrating/shared_statistics.h"
#include "distributing/shared_work.h"
#include "graft/error.h"
#include "graft/module_graph.h"
#include "graft/nn/unary.h"
#include "graft/ranks.h"
#include "graft/rounding.h"
#include "models/experts.h"
#include "plugins/call.h"
#include "plugins/one_torch_thread.h"

namespace graft {
namespace {

struct Member {
  const PlanEntry* entry = nullptr;
  std::shared_ptr<nn::Unary> dense;  ///< as it was in the model
  std::shared_ptr<nn::Unary> made;
  at::Tensor divisor;  ///< what the output of `made` is divided by, beyond its record
};

struct Group {
  std::vector<Member> members;
  std::string producer;
  bool done = false;
  std::size_t record = 0;  ///< its number in the journal
  bool in_memory = false;  ///< Member::made is there; else in the journal alone
  at::Tensor scales;       ///< what the producer was told to divide by; undefined: nothing
  at::Tensor divisor;      ///< what it now divides by, and the inputs of this run lack
};

/// A batch on its way through the model.
struct Traveller {
  std::unique_ptr<Fiber> fiber;
  std::optional<std::size_t> group;  ///< whose input it brought last
  at::Tensor input;                  ///< that one, until all members have seen it
  std::size_t seen = 0;
};

/// Thrown through a batch's forward pass when the job ends before it.
struct Abandoned {};

class Job {
 public:
  Job(const std::shared_ptr<nn::Block>& root, const Plan& plan, const Calibrating& how,
      std::int64_t batches, const Context& context)
      : root_(root),
        plan_(plan),
        how_(how),
        context_(context),
        swaps_(root),
        statistics_(how.ranks, batches) {
    std::map<std::string, std::pair<std::size_t, std::string>> grouped;  // path -> group, producer
    if (const auto* model = dynamic_cast<const Model*>(root.get())) {
      std::size_t number = 0;
      for (const auto& group : model->input_groups()) {
        for (const auto& path : group.modules) grouped[path] = {number, group.producer};
        ++number;
      }
    }
    std::map<std::pair<std::size_t, const Quantizer*>, std::size_t> known;
    for (const auto& entry : plan.entries) {
      if (entry.action != Action::quantize) continue;
      std::size_t index = groups_.size();
      std::string producer;
      if (const auto found = grouped.find(entry.spec.path); found != grouped.end()) {
        producer = found->second.second;
        index = known.try_emplace({found->second.first, entry.quantizer}, index).first->second;
      }
      if (index == groups_.size()) {
        groups_.emplace_back();
        groups_.back().producer = producer;
      }
      groups_[index].members.push_back({&entry, nullptr, nullptr, {}});
      index_of_[entry.spec.path] = {index, groups_[index].members.size() - 1};
    }
  }

  /// Gives producers back the tensors they had, unless finish() came to its end.
  ~Job() {
    for (const auto& experts : shown_) experts->show_all_rows(false);
    if (finished_) return;
    for (auto done = divided_.rbegin(); done != divided_.rend(); ++done)
      for (const auto& [name, tensor] : done->second) done->first->set_tensor(name, tensor);
  }
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  void install();
  void run(const std::function<void(std::int64_t)>& forward);
  void finish(const Observer& observer);
  at::Tensor answer(std::size_t group, std::size_t member, const at::Tensor& x);
  std::vector<GroupReport> take_report() { return std::move(report_); }

 private:
  std::optional<std::size_t> next_group();
  std::vector<at::Tensor> inputs_of(std::size_t group) const;
  void make(std::size_t index);
  GroupReport quantize(std::size_t index);
  void bring_back(Group& group, const GroupRecord& record);
  void bring_back(Group& group);
  void put_away_before(std::size_t index);
  void abandon();
  void divide(Group& group, const at::Tensor& scales);
  void adopt(Member& member, const std::shared_ptr<nn::Block>& made) const;
  std::vector<Tensors> saved(const Group& group) const;
  Tensors dense_of(const Member& member) const;

  std::shared_ptr<nn::Block> root_;
  const Plan& plan_;
  const Calibrating how_;
  const Context& context_;
  Swaps swaps_;
  std::vector<Group> groups_;
  std::map<std::string, std::pair<std::size_t, std::size_t>> index_of_;  ///< path -> group, member
  const std::thread::id thread_ = std::this_thread::get_id();
  SharedStatistics statistics_;
  std::vector<std::shared_ptr<SequentialExperts>> shown_;  ///< all rows
  std::vector<Traveller> travellers_;  ///< of the batches that this process has
  Traveller* running_ = nullptr;
  bool abandoned_ = false;
  std::uint64_t put_away_bytes_ = 0;  ///< since freed memory was returned
  std::size_t done_ = 0;
  bool finished_ = false;
  /// Producers that divide their outputs, with the tensors they had before.
  std::vector<
      std::pair<std::shared_ptr<nn::Unary>, std::vector<std::pair<std::string, at::Tensor>>>>
      divided_;
  std::vector<GroupReport> report_;
};

std::vector<std::string> paths_of(const Group& group) {
  std::vector<std::string> out;
  for (const auto& member : group.members) out.push_back(member.entry->spec.path);
  return out;
}

/// Stands where a module of the plan was, and hands its input to the job.
class Waiting : public nn::Unary {
 public:
  Waiting(const std::string& class_name, Job& job, std::size_t group, std::size_t member)
      : Unary(class_name), job_(job), group_(group), member_(member) {}
  at::Tensor forward(const at::Tensor& x) override { return job_.answer(group_, member_, x); }

 private:
  Job& job_;
  std::size_t group_, member_;
};

void Job::install() {
  if (how_.all_experts)
    for (const auto& [path, module] : named_modules(root_))
      if (auto experts = std::dynamic_pointer_cast<SequentialExperts>(module))
        shown_.push_back(std::move(experts));
  for (const auto& experts : shown_) experts->show_all_rows(true);
  if (how_.all_experts && shown_.empty())
    throw Error(ErrorKind::usage, "no experts of this model are modules of their own")
        .at("--all-experts")
        .hint("leave out the option");
  for (std::size_t g = 0; g < groups_.size(); ++g)
    for (std::size_t m = 0; m < groups_[g].members.size(); ++m) {
      Member& member = groups_[g].members[m];
      const auto& spec = member.entry->spec;
      const auto [parent, name] = get_module_from_name(root_, spec.path);
      member.dense = std::dynamic_pointer_cast<nn::Unary>(*parent->named_children().find(name));
      if (!member.dense)
        throw Error(ErrorKind::usage, "a " + spec.class_name +
                                          " takes more than one input, so it cannot be calibrated")
            .at(spec.path);
      swaps_.swap_everywhere(*member.entry,
                             std::make_shared<Waiting>(spec.class_name, *this, g, m));
    }
}

Tensors Job::dense_of(const Member& member) const {
  Tensors out;
  const PlanEntry& entry = *member.entry;
  if (how_.checkpoint) {
    for (const auto& [name, tensor] : read_all(*how_.checkpoint, entry, member.dense.get()))
      out.set(name, in_dtype(tensor, plan_.dtype));
    return out;
  }
  for (const auto& [name, tensor] : member.dense->own_tensors())
    out.set(name, in_dtype(entry.spec.input_major && name == "weight" ? tensor.t() : tensor,
                           plan_.dtype));
  return out;
}

/// Calls the plugin that the entry is of.
template <class Call>
decltype(auto) call_for(const PlanEntry& entry, Call&& call) {
  return call_plugin(entry.plugin, entry.spec.path, std::forward<Call>(call));
}

/// Has the producer divide what it makes. A module of the plan, which is made by now, does so each
/// time that it is brought back; one that stays dense only if it is a norm.
void Job::divide(Group& group, const at::Tensor& scales) {
  if (const auto found = index_of_.find(group.producer); found != index_of_.end()) {
    Group& before = groups_[found->second.first];
    Member& producer = before.members[found->second.second];
    if (!before.done || producer.divisor.defined()) return;
    if (!before.in_memory) bring_back(before);
    group.divisor = call_for(*producer.entry, [&] { return producer.made->divide_output(scales); });
    if (group.divisor.defined()) producer.divisor = group.scales = scales;
    return;
  }
  const auto [parent, name] = get_module_from_name(root_, group.producer);
  const auto producer = std::dynamic_pointer_cast<nn::Unary>(*parent->named_children().find(name));
  if (!producer) return;
  auto tensors = producer->own_tensors();
  group.divisor = producer->divide_output(scales);
  if (!group.divisor.defined()) return;
  group.scales = scales;
  divided_.emplace_back(producer, std::move(tensors));
}

void Job::adopt(Member& member, const std::shared_ptr<nn::Block>& made) const {
  check_made(*member.entry, made, /*on_meta=*/false);
  member.made = std::dynamic_pointer_cast<nn::Unary>(made);
  if (!member.made)
    throw Error(ErrorKind::plugin,
                "the plugin " + member.entry->plugin + " made no graft::nn::Unary")
        .at(member.entry->spec.path);
}

/// What the batches that wait for the group bring to it; undefined for those that do not.
std::vector<at::Tensor> Job::inputs_of(std::size_t group) const {
  std::vector<at::Tensor> out;
  for (const auto& traveller : travellers_)
    out.push_back(traveller.group == group ? traveller.input : at::Tensor());
  return out;
}

GroupReport Job::quantize(std::size_t index) {
  Group& group = groups_[index];
  const OneTorchThread guard;
  const ShareAmong sharers(how_.ranks);
  const auto start = std::chrono::steady_clock::now();
  const PlanEntry& first = *group.members.front().entry;
  ModuleGroup given;
  given.recipe = how_.recipe;
  GroupReport row;
  for (const auto& member : group.members) {
    given.members.push_back({member.entry->spec, member.entry->config, dense_of(member)});
    row.modules.push_back(member.entry->spec.path);
  }
  given.inputs = statistics_.of(index, inputs_of(index));
  row.tokens = given.inputs.tokens;
  if (how_.observe) how_.observe(given);
  if (row.tokens > 0 && !group.producer.empty()) {
    const auto scales =
        call_for(first, [&] { return first.quantizer->input_scales(given, context_); });
    if (scales.defined()) divide(group, scales);
    if (group.divisor.defined()) {
      for (auto& member : given.members) {
        const auto& weight = member.dense.at("weight");
        member.dense.set("weight", weight.to(at::kFloat) * group.divisor);
      }
      given.inputs.hessian.div_(group.divisor).div_(group.divisor.unsqueeze(1));
    }
  }
  auto result = call_for(first, [&] { return first.quantizer->quantize(given, context_); });
  if (result.modules.size() != group.members.size())
    throw Error(ErrorKind::plugin, "the plugin " + first.plugin + " made another number of modules")
        .at(first.spec.path)
        .expected(std::to_string(group.members.size()))
        .found(std::to_string(result.modules.size()));
  double lost = 0, whole = 0;
  for (std::size_t i = 0; i < group.members.size(); ++i) {
    Member& member = group.members[i];
    adopt(member, result.modules[i]);
    if (row.tokens == 0) continue;
    const auto dequantized =
        call_for(first, [&] { return first.quantizer->dequantize(*member.made); });
    const auto weight = given.members[i].dense.at("weight").to(at::kFloat);
    const auto energies =
        output_energies({weight - dequantized.to(at::kFloat), weight}, given.inputs.hessian);
    lost += energies[0];
    whole += energies[1];
    row.module_errors.push_back(energies[1] > 0 ? energies[0] / energies[1] : 0);
  }
  if (row.tokens > 0) row.relative_error = whole > 0 ? lost / whole : 0;
  if (!std::isfinite(lost) || !std::isfinite(whole)) {
    row.relative_error = -1;
    row.module_errors.clear();
  }
  row.fallback = result.fallback;
  if (row.tokens == 0) row.fallback = "no token of the calibration text reached it";
  row.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return row;
}

void Job::bring_back(Group& group, const GroupRecord& record) {
  for (std::size_t i = 0; i < group.members.size(); ++i) {
    Member& member = group.members[i];
    const PlanEntry& entry = *member.entry;
    adopt(member, call_for(entry, [&] {
            auto module = entry.quantizer->build(entry.spec, *entry.config);
            entry.quantizer->fill(*module, *entry.config, record.modules[i]);
            return module;
          }));
    if (member.divisor.defined())
      call_for(entry, [&] { member.made->divide_output(member.divisor); });
  }
  group.in_memory = true;
  // Without this a job that goes on took half as much memory again as an uninterrupted one.
  return_freed_memory();
}

void Job::bring_back(Group& group) {
  bring_back(group, how_.journal->read(group.record, paths_of(group)));
}

/// All batches are past these groups, whose modules wait in the journal for the end.
void Job::put_away_before(std::size_t index) {
  if (!how_.journal) return;
  const auto producer = index_of_.find(groups_[index].producer);
  for (std::size_t g = 0; g < index; ++g) {
    if (!groups_[g].done || !groups_[g].in_memory) continue;
    if (producer != index_of_.end() && producer->second.first == g) continue;  // it may be divided
    for (auto& member : groups_[g].members) {
      member.made = nullptr;
      put_away_bytes_ += member.entry->bytes_after;
    }
    groups_[g].in_memory = false;
  }
  if (put_away_bytes_ < kBytesBetweenTrims) return;
  put_away_bytes_ = 0;
  return_freed_memory();
}

std::vector<Tensors> Job::saved(const Group& group) const {
  std::vector<Tensors> out;
  for (const auto& member : group.members)
    out.push_back(call_for(*member.entry, [&] {
      return member.entry->quantizer->save(*member.made, *member.entry->config);
    }));
  return out;
}

/// Has the group's modules made, from its record or by the inputs of the batches that wait for it.
void Job::make(std::size_t index) {
  context_.advance("calibrate", done_++, groups_.size());
  put_away_before(index);
  Group& group = groups_[index];
  GroupReport row;
  std::optional<GroupRecord> record;
  if (how_.journal) {
    group.record = how_.journal->number();
    if (how_.ranks && how_.journal->reading()) {
      const bool first = how_.ranks->rank() == 0;
      const auto bytes = how_.ranks->gather(first ? how_.journal->next_bytes() : "");
      if (!first) how_.journal->put_next_bytes(bytes.front());
    }
    record = how_.journal->next(paths_of(group));
  }
  if (record) {
    bring_back(group, *record);
    if (record->scales.defined()) divide(group, record->scales);
    row = std::move(record->row);
  } else {
    row = quantize(index);
    group.in_memory = true;
    if (how_.journal) how_.journal->keep({saved(group), group.scales, row});
  }
  group.done = true;
  if (!row.fallback.empty())
    context_.say(LogLevel::warning, "calibrate", row.modules.front() + ": " + row.fallback);
  report_.push_back(std::move(row));
}

/// The first group that a batch of any rank waits for.
std::optional<std::size_t> Job::next_group() {
  std::optional<std::size_t> first;
  for (const auto& traveller : travellers_)
    if (!traveller.fiber->ended() && (!first || *traveller.group < *first)) first = traveller.group;
  const bool to_be_done = !how_.journal || !how_.journal->reading();
  return statistics_.meet(first, first ? inputs_of(*first) : std::vector<at::Tensor>(), to_be_done);
}

void Job::run(const std::function<void(std::int64_t)>& forward) {
  const auto held = statistics_.held();
  for (std::int64_t b = held.first; b < held.last; ++b)
    travellers_.emplace_back().fiber = std::make_unique<Fiber>([&forward, b] { forward(b); });
  try {
    while (true) {
      for (auto& traveller : travellers_) {
        if (traveller.fiber->ended() || (traveller.group && !groups_[*traveller.group].done))
          continue;
        running_ = &traveller;
        traveller.fiber->resume();
      }
      const auto next = next_group();
      if (!next) break;
      make(*next);
    }
  } catch (...) {
    abandon();
    throw;
  }
  travellers_.clear();
}

/// Lets every batch on its way unwind its stack.
void Job::abandon() {
  abandoned_ = true;
  for (auto& traveller : travellers_) {
    if (!traveller.group) continue;  // it never began
    running_ = &traveller;
    while (!traveller.fiber->ended()) {
      try {
        traveller.fiber->resume();
      } catch (...) {  // Abandoned, or what the model makes of it
      }
    }
  }
  travellers_.clear();
}

at::Tensor Job::answer(std::size_t index, std::size_t number, const at::Tensor& x) {
  Group& group = groups_[index];
  Member& member = group.members[number];
  if (std::this_thread::get_id() != thread_)
    throw Error(ErrorKind::usage, "the model is called from another thread while it is calibrated")
        .at(member.entry->spec.path)
        .hint("run a batch's forward pass in the thread that calls calibrate");
  Traveller& mine = *running_;
  if (mine.group != index || !mine.input.defined()) {
    mine.group = index;
    mine.input = x;
    mine.seen = 0;
    if (!group.done) mine.fiber->leave();
    if (abandoned_) throw Abandoned();
  } else if (x.data_ptr() != mine.input.data_ptr() || x.sizes() != mine.input.sizes()) {
    throw Error(ErrorKind::internal, "modules of one group have different inputs")
        .at(member.entry->spec.path)
        .hint("input_groups of the model's class is wrong: report it");
  }
  if (++mine.seen == group.members.size()) mine.input = at::Tensor();
  if (!group.in_memory) bring_back(group);
  return member.made->forward(group.divisor.defined() ? (x / group.divisor).to(x.scalar_type())
                                                      : x);
}

void Job::finish(const Observer& observer) {
  for (std::size_t g = 0; g < groups_.size(); ++g)
    if (!groups_[g].done) make(g);
  for (auto& group : groups_)
    if (!group.in_memory) bring_back(group);
  context_.advance("calibrate", groups_.size(), groups_.size());
  for (const auto& group : groups_)
    for (const auto& member : group.members) swaps_.swap_everywhere(*member.entry, member.made);
  swaps_.keep();
  finished_ = true;
  for (const auto& entry : plan_.entries)
    if (entry.action == Action::quantize) tell(observer, entry, entry.replacement);
}

}  // namespace

CalibrationUse use_of_calibration(const Plan& plan) {
  auto strongest = CalibrationUse::none;
  for (const auto& entry : plan.entries)
    if (entry.action == Action::quantize)
      strongest = std::max(strongest, entry.quantizer->calibration(*entry.config));
  return strongest;
}

std::vector<GroupReport> quantize_calibrated(const std::shared_ptr<nn::Block>& root,
                                             const Plan& plan, const Calibrating& how,
                                             std::int64_t batches,
                                             const std::function<void(std::int64_t)>& run,
                                             const Context& context, const Observer& observer) {
  Job job(root, plan, how, batches, context);
  job.install();
  job.run(run);
  job.finish(observer);
  return job.take_report();
}

}  // namespace graft
