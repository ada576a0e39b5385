#include "calibrating/calibrate.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <compare>
#include <cmath>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "applying/convert.h"
#include "applying/swaps.h"
#include "calibrating/fiber.h"
#include "calibrating/journal.h"
#include "calibrating/polish.h"
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
#include "running/each_on_pool.h"

namespace graft {
namespace {

struct Member {
  const PlanEntry* entry = nullptr;
  std::shared_ptr<nn::Unary> dense;  ///< as it was in the model
  std::shared_ptr<nn::Unary> made;
  at::Tensor divisor;     ///< what the output of `made` is divided by, beyond its record
  at::Tensor divided_by;  ///< what that comes to
};

struct Group {
  std::vector<Member> members;
  std::string producer;
  bool done = false;
  std::size_t layer = 0;   ///< the number of layers that had begun when batches came
  std::size_t record = 0;  ///< the number in the journal of the record with its modules, which are
  std::size_t place = 0;   ///< there from this one on among
  std::vector<std::string> recorded;
  bool in_memory = false;  ///< Member::made is there; else in the journal alone
  at::Tensor scales;       ///< what the producer was told to divide by; undefined: nothing
  at::Tensor divisor;      ///< what it now divides by, and the inputs of this run lack
};

/// Where batches wait, in the order in which they get there.
struct Stop {
  std::size_t layer = 0;  ///< layers that have begun
  enum Phase : std::size_t { inside, end, behind } phase = behind;
  std::size_t group = 0;  ///< whose modules are to be made; none at the end of a layer

  auto operator<=>(const Stop&) const = default;
};

/// A batch on its way through the model.
struct Traveller {
  std::unique_ptr<Fiber> fiber;
  std::optional<Stop> stop;  ///< the last one
  at::Tensor input;          ///< that of the stop's group, until all members have seen it
  std::size_t seen = 0;
  bool divided = false;  ///< the input, by its producer

  std::size_t layer = 0;                       ///< layers that have begun
  const Batch::LayerForward* forward = nullptr;  ///< of the layer that it is in
  at::Tensor layer_input;
  at::Tensor dense_input;  ///< what the dense model gives to that layer
  bool again = false;      ///< through modules that are made

  bool waits_for(std::size_t group) const {
    return stop && stop->phase != Stop::end && stop->group == group;
  }
};

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
      groups_[index].members.push_back({&entry, nullptr, nullptr, {}, {}});
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
  void run(const std::function<void(std::int64_t, const Batch::AroundLayer&)>& forward);
  void finish(const Observer& observer);
  at::Tensor answer(std::size_t group, std::size_t member, const at::Tensor& x);
  Calibrated take_report() { return std::move(report_); }

 private:
  std::size_t number_of(const Stop& stop) const;
  std::optional<Stop> next_stop();
  bool may_go_on(const Traveller& traveller) const;
  std::vector<at::Tensor> inputs_of(std::size_t group) const;
  std::optional<GroupRecord> next_record(const std::vector<std::string>& paths);
  void make(const Stop& stop);
  GroupReport quantize(const Stop& stop);
  void bring_back(Group& group, const GroupRecord& record);
  void bring_back(Group& group);
  void put_away_before(const Stop& stop);

  at::Tensor through_layer(std::size_t layer, const at::Tensor& x,
                           const Batch::LayerForward& forward);
  at::Tensor stand_in(const Group& group, const Member& member, const at::Tensor& x) const;
  at::Tensor dense_weight(const Group& group, const Member& member) const;
  const Member* last_of_block(std::size_t group) const;
  std::function<double(const std::vector<at::Tensor>&)> block_error(const Stop& stop);
  void polish_layer(std::size_t layer);
  void polish_modules(std::size_t layer, const std::vector<std::size_t>& groups,
                      const std::vector<at::Tensor>& wanted, GroupRecord& record);
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
  std::size_t polished_ = 0;  ///< layers that are ready, as they were or not
  std::map<std::size_t, bool> changed_;  ///< by layers that had begun: whether codes are others
  bool finished_ = false;
  /// Producers that divide their outputs, with the tensors they had before.
  std::vector<
      std::pair<std::shared_ptr<nn::Unary>, std::vector<std::pair<std::string, at::Tensor>>>>
      divided_;
  Calibrated report_;
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
    if (!group.divisor.defined()) return;
    producer.divisor = group.scales = scales;
    producer.divided_by = group.divisor;
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
    out.push_back(traveller.waits_for(group) ? traveller.input : at::Tensor());
  return out;
}

GroupReport Job::quantize(const Stop& stop) {
  Group& group = groups_[stop.group];
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
  given.inputs = statistics_.of(number_of(stop), inputs_of(stop.group));
  row.tokens = given.inputs.tokens;
  if (how_.observe) how_.observe(given);
  if (row.tokens > 0 && !group.producer.empty()) {
    if (how_.search_by_block) given.block_error = block_error(stop);
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
            entry.quantizer->fill(*module, *entry.config, record.modules[group.place + i]);
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
  bring_back(group, how_.journal->read(group.record, group.recorded));
}

/// All batches are past these groups, whose modules wait in the journal for the end.
void Job::put_away_before(const Stop& stop) {
  if (!how_.journal) return;
  const auto producer = index_of_.find(groups_[stop.group].producer);
  for (std::size_t g = 0; g < stop.group; ++g) {
    if (!groups_[g].done || !groups_[g].in_memory) continue;
    if (producer != index_of_.end() && producer->second.first == g) continue;  // it may be divided
    if (how_.polish_steps > 0 && groups_[g].layer == stop.layer) continue;
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

/// What the journal has next, of these modules; nothing when they are to be made.
std::optional<GroupRecord> Job::next_record(const std::vector<std::string>& paths) {
  if (!how_.journal) return std::nullopt;
  if (how_.ranks && how_.journal->reading()) {
    const bool first = how_.ranks->rank() == 0;
    const auto bytes = how_.ranks->gather(first ? how_.journal->next_bytes() : "");
    if (!first) how_.journal->put_next_bytes(bytes.front());
  }
  return how_.journal->next(paths);
}

/// Has the group's modules made, from its record or by the inputs of the batches that wait for it.
void Job::make(const Stop& stop) {
  context_.advance("calibrate", done_++, groups_.size());
  put_away_before(stop);
  Group& group = groups_[stop.group];
  group.layer = stop.layer;
  group.recorded = paths_of(group);
  if (how_.journal) group.record = how_.journal->number();
  GroupReport row;
  auto record = next_record(group.recorded);
  if (record) {
    bring_back(group, *record);
    if (record->scales.defined()) divide(group, record->scales);
    row = std::move(record->row);
  } else {
    row = quantize(stop);
    group.in_memory = true;
    if (how_.journal) how_.journal->keep({saved(group), group.scales, row});
  }
  group.done = true;
  if (!row.fallback.empty())
    context_.say(LogLevel::warning, "calibrate", row.modules.front() + ": " + row.fallback);
  report_.groups.push_back(std::move(row));
}

/// In the order of stops.
std::size_t Job::number_of(const Stop& stop) const {
  return (stop.layer * 3 + stop.phase) * (groups_.size() + 1) + stop.group;
}

/// The first stop at which a batch of any rank waits.
std::optional<Stop> Job::next_stop() {
  std::optional<Stop> first;
  for (const auto& traveller : travellers_)
    if (!traveller.fiber->ended() && (!first || *traveller.stop < *first)) first = traveller.stop;
  std::vector<at::Tensor> inputs;
  if (first) inputs = inputs_of(first->phase == Stop::end ? groups_.size() : first->group);
  const bool to_be_done = !how_.journal || !how_.journal->reading();
  const auto met = statistics_.meet(
      first ? std::optional(number_of(*first)) : std::nullopt, inputs, to_be_done);
  if (!met) return std::nullopt;
  const auto many = groups_.size() + 1;
  return Stop{*met / many / 3, static_cast<Stop::Phase>(*met / many % 3), *met % many};
}

bool Job::may_go_on(const Traveller& traveller) const {
  if (traveller.fiber->ended()) return false;
  if (!traveller.stop) return true;
  return traveller.stop->phase == Stop::end ? polished_ >= traveller.stop->layer
                                            : groups_[traveller.stop->group].done;
}

void Job::run(const std::function<void(std::int64_t, const Batch::AroundLayer&)>& forward) {
  const auto held = statistics_.held();
  Batch::AroundLayer around;
  if (how_.polish_steps > 0 || how_.search_by_block)
    around = [this](std::size_t layer, const at::Tensor& x, const auto& forward_layer) {
      return through_layer(layer, x, forward_layer);
    };
  for (std::int64_t b = held.first; b < held.last; ++b)
    travellers_.emplace_back().fiber =
        std::make_unique<Fiber>([&forward, &around, b] { forward(b, around); });
  try {
    while (true) {
      for (auto& traveller : travellers_) {
        if (!may_go_on(traveller)) continue;
        running_ = &traveller;
        traveller.fiber->resume();
      }
      const auto next = next_stop();
      if (!next) break;
      if (next->phase == Stop::end)
        polish_layer(next->layer);
      else
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
    if (!traveller.stop) continue;  // it never began
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
  if (stand_ins) return stand_in(group, member, x);
  if (std::this_thread::get_id() != thread_)
    throw Error(ErrorKind::usage, "the model is called from another thread while it is calibrated")
        .at(member.entry->spec.path)
        .hint("run a batch's forward pass in the thread that calls calibrate");
  Traveller& mine = *running_;
  if (!mine.waits_for(index) || !mine.input.defined()) {
    mine.stop = Stop{mine.layer, mine.forward ? Stop::inside : Stop::behind, index};
    mine.input = x;
    mine.seen = 0;
    mine.divided = mine.again && group.done;
    if (!group.done) mine.fiber->leave();
    if (abandoned_) throw Abandoned();
  } else if (x.data_ptr() != mine.input.data_ptr() || x.sizes() != mine.input.sizes()) {
    throw Error(ErrorKind::internal, "modules of one group have different inputs")
        .at(member.entry->spec.path)
        .hint("input_groups of the model's class is wrong: report it");
  }
  if (++mine.seen == group.members.size()) mine.input = at::Tensor();
  if (!group.in_memory) bring_back(group);
  return member.made->forward(group.divisor.defined() && !mine.divided
                                  ? (x / group.divisor).to(x.scalar_type())
                                  : x);
}

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

at::Tensor Job::stand_in(const Group& group, const Member& member, const at::Tensor& x) const {
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
  record.layer = LayerReport{layer - 1,        record.row.modules, polished.error_before,
                             polished.error_after, polished.changed,   polished.left,
                             0};
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

void Job::finish(const Observer& observer) {
  // No batch came to these.
  constexpr std::size_t kBehindAll = 1 << 20;
  for (std::size_t g = 0; g < groups_.size(); ++g)
    if (!groups_[g].done) make({kBehindAll, Stop::behind, g});
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

Calibrated quantize_calibrated(
    const std::shared_ptr<nn::Block>& root, const Plan& plan, const Calibrating& how,
    std::int64_t batches,
    const std::function<void(std::int64_t, const Batch::AroundLayer&)>& run,
    const Context& context, const Observer& observer) {
  Job job(root, plan, how, batches, context);
  job.install();
  job.run(run);
  job.finish(observer);
  return job.take_report();
}

}  // namespace graft
