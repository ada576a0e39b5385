#include "calibrating/calibrate.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "applying/convert.h"
#include "calibrating/job.h"
#include "calibrating/journal.h"
#include "graft/error.h"
#include "graft/module_graph.h"
#include "models/experts.h"

namespace graft::calibration_job {
namespace {

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

}  // namespace

Job::Job(const std::shared_ptr<nn::Block>& root, const Plan& plan, const Calibrating& how,
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

Job::~Job() {
  for (const auto& experts : shown_) experts->show_all_rows(false);
  if (finished_) return;
  for (auto done = divided_.rbegin(); done != divided_.rend(); ++done)
    for (const auto& [name, tensor] : done->second) done->first->set_tensor(name, tensor);
}

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
  if ((how_.polish_steps > 0 || how_.search_by_block) && !layers_seen_)
    throw Error(ErrorKind::usage, "the model does not show its layers, so none can be run again")
        .at(how_.polish_steps > 0 ? "--polish" : "--search-by-block")
        .hint("leave out the option, or have the model call Batch::around_layer");
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
  if (auto y = stand_in(group, member, x); y.defined()) return y;
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
  for (const auto& entry : plan_.entries)
    if (entry.action == Action::quantize) tell(observer, entry, entry.replacement);
  swaps_.keep();
  finished_ = true;
}

}  // namespace graft::calibration_job

namespace graft {

CalibrationUse use_of_calibration(const Plan& plan) {
  auto strongest = CalibrationUse::none;
  for (const auto& entry : plan.entries)
    if (entry.action == Action::quantize)
      strongest = std::max(strongest, call_plugin(entry.plugin, entry.spec.path, [&] {
                             return entry.quantizer->calibration(*entry.config);
                           }));
  return strongest;
}

Calibrated quantize_calibrated(
    const std::shared_ptr<nn::Block>& root, const Plan& plan, const Calibrating& how,
    std::int64_t batches,
    const std::function<void(std::int64_t, const Batch::AroundLayer&)>& run,
    const Context& context, const Observer& observer) {
  calibration_job::Job job(root, plan, how, batches, context);
  job.install();
  job.run(run);
  job.finish(observer);
  return job.take_report();
}

}  // namespace graft
