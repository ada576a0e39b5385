#include <ATen/ATen.h>

#include <chrono>
#include <cmath>

#include "applying/convert.h"
#include "calibrating/job.h"
#include "calibrating/journal.h"
#include "distributing/shared_work.h"
#include "graft/error.h"
#include "graft/module_graph.h"
#include "graft/ranks.h"
#include "graft/rounding.h"
#include "plugins/one_torch_thread.h"

namespace graft::calibration_job {

Tensors Job::dense_of(const Member& member) const {
  if (!how_.checkpoint) return dense_tensors(*member.dense, plan_.dtype);
  Tensors out;
  for (const auto& [name, tensor] : read_all(*how_.checkpoint, *member.entry, member.dense.get()))
    out.set(name, in_dtype(tensor, plan_.dtype));
  return out;
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
        call_for(first, context_, [&](const Context& guarded) {
          return first.quantizer->input_scales(given, guarded);
        });
    if (scales.defined()) divide(group, scales);
    if (group.divisor.defined()) {
      for (auto& member : given.members) {
        const auto& weight = member.dense.at("weight");
        member.dense.set("weight", weight.to(at::kFloat) * group.divisor);
      }
      given.inputs.hessian.div_(group.divisor).div_(group.divisor.unsqueeze(1));
    }
  }
  auto result = call_for(first, context_, [&](const Context& guarded) {
    return first.quantizer->quantize(given, guarded);
  });
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
  layers_seen_ = layers_seen_ || stop.phase == Stop::inside;
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

}  // namespace graft::calibration_job
