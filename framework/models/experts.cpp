#include "models/experts.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>

#include "graft/error.h"
#include "models/gated_mlp.h"

namespace graft {

SortedPairs sort_by_expert(const at::Tensor& ids, std::int64_t experts) {
  const auto k = ids.size(1);
  const auto flat = ids.to(at::kCPU, at::kLong).contiguous();
  const auto* id = flat.const_data_ptr<std::int64_t>();
  const auto count = flat.numel();
  std::vector<std::int64_t> begin(static_cast<std::size_t>(experts) + 1, 0);
  for (std::int64_t i = 0; i < count; ++i) {
    if (id[i] < 0 || id[i] >= experts)
      throw Error(ErrorKind::internal, "a router chose an expert that does not exist")
          .expected("0 to " + std::to_string(experts - 1))
          .found(std::to_string(id[i]));
    ++begin[static_cast<std::size_t>(id[i]) + 1];
  }
  SortedPairs pairs;
  for (std::int64_t e = 0; e < experts; ++e) {
    const auto at = static_cast<std::size_t>(e);
    if (begin[at + 1]) pairs.segments.push_back({e, begin[at], begin[at + 1]});
    begin[at + 1] += begin[at];
  }
  auto rows = at::empty({count}, at::kLong), places = at::empty({count}, at::kLong);
  auto* row = rows.mutable_data_ptr<std::int64_t>();
  auto* place = places.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < count; ++i) {
    const auto to = begin[static_cast<std::size_t>(id[i])]++;
    row[to] = i / k;
    place[to] = i;
  }
  pairs.rows = rows.to(ids.device());
  pairs.places = places.to(ids.device());
  return pairs;
}

at::Tensor grouped_linear(const at::Tensor& rows, const SortedPairs& pairs,
                          const at::Tensor& weights, const at::Tensor& bias) {
  auto out = at::empty({rows.size(0), weights.size(1)}, rows.options());
  for (const auto& segment : pairs.segments) {
    auto part = out.narrow(0, segment.begin, segment.count);
    const auto given = rows.narrow(0, segment.begin, segment.count);
    const auto weight = weights.select(0, segment.expert).t();
    if (given.requires_grad())  // which mm_out has no derivative for
      part.copy_(at::mm(given, weight));
    else
      at::mm_out(part, given, weight);
    if (bias.defined()) part.add_(bias.select(0, segment.expert));
  }
  return out;
}

at::Tensor RoutedExperts::forward(const at::Tensor& x, const at::Tensor& ids,
                                  const at::Tensor& weights) {
  const auto pairs = sort_by_expert(ids, count_);
  auto rows = x.index_select(0, pairs.rows);
  if (weigh_ == Weigh::inputs)
    rows = rows * weights.reshape({-1, 1}).index_select(0, pairs.places).to(rows.scalar_type());
  const auto sorted = run(rows, pairs, x);
  auto outputs = at::empty(sorted.sizes(), sorted.options());
  outputs.index_copy_(0, pairs.places, sorted);
  outputs = outputs.view({ids.size(0), ids.size(1), x.size(1)});
  if (weigh_ == Weigh::outputs) outputs = outputs.to(at::kFloat) * weights.unsqueeze(2);
  return outputs.sum(1).to(x.scalar_type());
}

FusedGatedExperts::FusedGatedExperts(std::string class_name, const ExpertSizes& sizes,
                                     Activation activation, const at::TensorOptions& options)
    : RoutedExperts(std::move(class_name), sizes.count, Weigh::outputs),
      sizes_(sizes),
      activation_(activation) {
  own("gate_up_proj", gate_up_proj_,
      at::empty({sizes.count, 2 * sizes.intermediate, sizes.hidden}, options));
  own("down_proj", down_proj_, at::empty({sizes.count, sizes.hidden, sizes.intermediate}, options));
}

std::vector<nn::TensorPart> FusedGatedExperts::parts() const {
  std::vector<nn::TensorPart> parts;
  const auto half = sizes_.intermediate;
  for (std::int64_t e = 0; e < sizes_.count; ++e) {
    const std::string expert = std::to_string(e) + ".";
    parts.push_back({"gate_up_proj",
                     expert + "gate_proj.weight",
                     {.index = e, .dim = 0, .start = 0, .length = half}});
    parts.push_back({"gate_up_proj",
                     expert + "up_proj.weight",
                     {.index = e, .dim = 0, .start = half, .length = half}});
    parts.push_back({"down_proj", expert + "down_proj.weight", {.index = e}});
  }
  return parts;
}

void FusedGatedExperts::describe(ModuleSpec& spec) const {
  RoutedExperts::describe(spec);
  spec.dtype = gate_up_proj_.scalar_type();
}

at::Tensor FusedGatedExperts::run(const at::Tensor& rows, const SortedPairs& pairs,
                                  const at::Tensor& /*x*/) {
  const auto both = grouped_linear(rows, pairs, gate_up_proj_);
  const auto half = sizes_.intermediate;
  const auto inner = activation_(both.narrow(1, 0, half)) * both.narrow(1, half, half);
  return grouped_linear(inner, pairs, down_proj_);
}

SequentialExperts::SequentialExperts(std::string class_name, std::int64_t count, Weigh weigh,
                                     const MakeExpert& make)
    : RoutedExperts(std::move(class_name), count, weigh) {
  for (std::int64_t i = 0; i < count; ++i)
    experts_.push_back(std::make_unique<nn::Slot<nn::Unary>>(*this, std::to_string(i), make()));
}

at::Tensor SequentialExperts::run_together(const at::Tensor& rows, const SortedPairs& pairs) {
  std::vector<nn::Unary::Segment> segments;
  for (const auto& [expert, begin, count] : pairs.segments)
    segments.push_back({experts_[static_cast<std::size_t>(expert)]->get().get(), count});
  return segments.empty() ? at::Tensor()
                          : segments.front().module->forward_segments(rows, segments);
}

at::Tensor SequentialExperts::run(const at::Tensor& rows, const SortedPairs& pairs,
                                  const at::Tensor& x) {
  auto out = at::empty(rows.sizes(), rows.options());
  const auto run_one = [&](const SortedPairs::Segment& segment) {
    auto given = rows.narrow(0, segment.begin, segment.count);
    if (all_rows_) {
      auto others = at::ones({x.size(0)}, x.options().dtype(at::kBool));
      others.index_fill_(0, pairs.rows.narrow(0, segment.begin, segment.count), 0);
      given = at::cat({given, x.index({others})});
    }
    const auto made = (*experts_[static_cast<std::size_t>(segment.expert)])->forward(given);
    out.narrow(0, segment.begin, segment.count).copy_(made.narrow(0, 0, segment.count));
  };
  if (!all_rows_) {
    if (auto all = run_together(rows, pairs); all.defined()) return all;
    for (const auto& segment : pairs.segments) run_one(segment);
    return out;
  }
  auto segment = pairs.segments.begin();
  for (std::int64_t e = 0; e < size(); ++e)
    run_one(segment != pairs.segments.end() && segment->expert == e ? *segment++
                                                                    : SortedPairs::Segment{e, 0, 0});
  return out;
}

std::shared_ptr<nn::Block> sequential_gated_experts(std::string class_name, std::string mlp_class,
                                                    const ExpertSizes& sizes, Activation activation,
                                                    RoutedExperts::Weigh weigh,
                                                    const at::TensorOptions& options) {
  return std::make_shared<SequentialExperts>(std::move(class_name), sizes.count, weigh, [&] {
    return std::make_shared<GatedMlp>(mlp_class, sizes.hidden, sizes.intermediate, activation,
                                      options);
  });
}

void add_expert_groups(std::vector<InputGroup>& groups, const std::string& path,
                       const nn::Experts& experts) {
  if (!dynamic_cast<const SequentialExperts*>(&experts)) return;
  for (std::int64_t i = 0; i < experts.size(); ++i) {
    const std::string expert = path + std::to_string(i) + ".";
    groups.push_back({{expert + "gate_proj", expert + "up_proj"}, ""});
    groups.push_back({{expert + "down_proj"}, expert + "up_proj"});
  }
}

}  // namespace graft
