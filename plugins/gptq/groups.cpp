#include "groups.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "graft/error.h"

namespace graft::gptq {
namespace {

Error refusal(std::string what) {
  Error error(ErrorKind::model, std::move(what));
  error.at("tensor 'g_idx'");
  return error;
}

std::string range_of(std::int64_t groups) { return "0 to " + std::to_string(groups - 1); }

}  // namespace

at::Tensor groups_in_order(std::int64_t inputs, std::int64_t group_size) {
  auto out = at::empty({inputs}, at::kInt);
  auto* group = out.mutable_data_ptr<std::int32_t>();
  for (std::int64_t k = 0; k < inputs; ++k) group[k] = static_cast<std::int32_t>(k / group_size);
  return out;
}

Groups find_groups(const at::Tensor& g_idx, std::int64_t inputs, const GptqConfig& config) {
  using Kind = GroupIndex::Kind;
  const std::int64_t groups = config.groups(inputs);
  const bool order_matters = config.desc_act && groups > 1;
  const auto in_order = [&](std::string note) {
    return Groups{groups_in_order(inputs, config.group_of(inputs)), true, std::move(note)};
  };
  if (!g_idx.defined()) {
    if (order_matters && !config.static_groups)
      throw refusal("the tensor is missing, although desc_act says that inputs were reordered")
          .hint(
              "download the folder again; if the inputs are in order after all, set desc_act to "
              "false in config.json");
    return in_order(order_matters ? "g_idx is missing; static_groups says that groups are in order"
                                  : "");
  }
  const auto stored = g_idx.contiguous();
  if (stored.scalar_type() != at::kInt || stored.numel() != inputs)
    throw refusal("the group index cannot be used")
        .expected(std::to_string(inputs) + " elements of int32")
        .found(std::to_string(stored.numel()) + " of " +
               std::string(dtype_word(stored.scalar_type())));
  std::vector<std::int64_t> counts(static_cast<std::size_t>(groups));
  const GroupIndex found = classify(stored.const_data_ptr<std::int32_t>(), inputs,
                                    config.group_of(inputs), groups, counts.data());
  const std::string entry =
      std::to_string(found.value) + " at position " + std::to_string(found.position);
  switch (found.kind) {
    case Kind::in_order:
      return {stored, true, ""};
    case Kind::genuine:
      return {stored, false,
              config.desc_act ? ""
                              : "g_idx reorders groups although desc_act is false; it "
                                "is genuine and is used"};
    case Kind::negative:
      if (config.trust == Trust::data)
        return {at::where(stored < 0, stored + groups, stored), false, ""};
      if (config.trust == Trust::label && !order_matters)
        return in_order("g_idx has negative entries and is ignored");
      throw refusal("the group index has negative entries")
          .expected(range_of(groups))
          .found(entry)
          .hint("--trust data counts them from the last group, as GPTQModel does" +
                std::string(order_matters ? "" : "; --trust label ignores the tensor"));
    case Kind::out_of_range:
      if (config.trust == Trust::label && !order_matters)
        return in_order("g_idx is out of range and is ignored");
      throw refusal("the group index is out of range")
          .expected(range_of(groups))
          .found(entry)
          .hint(order_matters ? "download the folder again"
                              : "download the folder again, or give --trust label, because "
                                "desc_act is false and the tensor is not needed then");
    case Kind::uneven:
    case Kind::rows:
      break;
  }
  const std::string what = found.kind == Kind::rows ? "it only counts the inputs"
                                                    : "its groups do not have group_size inputs";
  if (order_matters)
    throw refusal("the group index is stale: " + what +
                  ", although desc_act says that inputs were reordered")
        .expected(std::to_string(config.group_of(inputs)) + " inputs in each of " +
                  std::to_string(groups) + " groups")
        .hint("the right order is lost; get the model from its source again");
  return in_order("g_idx is stale (" + what + ") and is ignored");
}

}  // namespace graft::gptq
