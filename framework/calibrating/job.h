#pragma once

#include <ATen/core/Tensor.h>

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "applying/swaps.h"
#include "calibrating/calibrate.h"
#include "calibrating/fiber.h"
#include "calibrating/record_file.h"
#include "calibrating/shared_statistics.h"
#include "graft/nn/unary.h"
#include "plugins/call.h"

namespace graft {
class SequentialExperts;
}

/// What quantize_calibrated is made of: how batches go through the model and wait (calibrate.cpp),
/// how the modules of a group are made once all have come (job_groups.cpp), and what is done with a
/// layer by running it again (job_layers.cpp).
namespace graft::calibration_job {

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

/// Thrown through a batch's forward pass when the job ends before it.
struct Abandoned {};

class Job {
 public:
  Job(const std::shared_ptr<nn::Block>& root, const Plan& plan, const Calibrating& how,
      std::int64_t batches, const Context& context);
  /// Gives producers back the tensors they had, unless finish() came to its end.
  ~Job();
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
  bool layers_seen_ = false;
  std::size_t polished_ = 0;  ///< layers that are ready, as they were or not
  std::map<std::size_t, bool> changed_;  ///< by layers that had begun: whether codes are others
  bool finished_ = false;
  /// Producers that divide their outputs, with the tensors they had before.
  std::vector<
      std::pair<std::shared_ptr<nn::Unary>, std::vector<std::pair<std::string, at::Tensor>>>>
      divided_;
  Calibrated report_;
};

inline std::vector<std::string> paths_of(const Group& group) {
  std::vector<std::string> out;
  for (const auto& member : group.members) out.push_back(member.entry->spec.path);
  return out;
}

/// Calls the plugin that the entry is of.
template <class Call>
decltype(auto) call_for(const PlanEntry& entry, Call&& call) {
  return call_plugin(entry.plugin, entry.spec.path, std::forward<Call>(call));
}

/// The same for a call that is given a Context.
template <class Call>
decltype(auto) call_for(const PlanEntry& entry, const Context& context, Call&& call) {
  return call_plugin(entry.plugin, entry.spec.path, context, std::forward<Call>(call));
}

}  // namespace graft::calibration_job
