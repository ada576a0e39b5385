#include "graft/plan.h"

#include <algorithm>

#include "graft/error.h"
#include "graft/tensors.h"

namespace graft {
namespace {

std::string list_of(const std::vector<std::string>& items) {
  constexpr std::size_t kShown = 8;
  std::string out;
  for (std::size_t i = 0; i < items.size() && i < kShown; ++i) out += (i ? ", " : "") + items[i];
  if (items.size() > kShown) out += " and " + std::to_string(items.size() - kShown) + " more";
  return out;
}

template <class Member>
std::uint64_t sum(const std::vector<PlanEntry>& entries, Member member) {
  std::uint64_t total = 0;
  for (const auto& entry : entries) total += entry.*member;
  return total;
}

Value to_values(const std::vector<std::string>& items) {
  Value::Array out(items.begin(), items.end());
  return out;
}

Value::Array unloaded_rows(const Plan& plan) {
  Value::Array rows;
  for (const auto& tensor : plan.unloaded) {
    Value row;
    row.set("tensor", tensor.source);
    row.set("reason", tensor.reason);
    row.set("carried", tensor.carried);
    rows.push_back(std::move(row));
  }
  return rows;
}

std::string_view word(Action action) {
  switch (action) {
    case Action::quantize:
      return "quantize";
    case Action::restructure:
      return "restructure";
    case Action::keep:
      return "keep";
  }
  return "";
}

}  // namespace

std::size_t Plan::count(Action action) const {
  return static_cast<std::size_t>(std::count_if(entries.begin(), entries.end(),
                                                [&](const auto& e) { return e.action == action; }));
}

std::uint64_t Plan::bytes_before() const { return sum(entries, &PlanEntry::bytes_before); }
std::uint64_t Plan::bytes_after() const { return sum(entries, &PlanEntry::bytes_after); }

double Plan::bits_per_weight() const {
  double bits = 0, weights = 0;
  for (const auto& entry : entries)
    if (entry.action == Action::quantize) {
      bits += 8.0 * static_cast<double>(entry.bytes_after);
      weights += static_cast<double>(entry.spec.in_features) *
                 static_cast<double>(entry.spec.out_features);
    }
  return weights > 0 ? bits / weights : 0;
}

std::uint64_t Plan::bytes_taken() const {
  std::uint64_t total = 0;
  for (const auto& entry : entries)
    for (const auto& tensor : entry.tensors) total += tensor.bytes;
  return total;
}

void Plan::check(bool strict) const {
  constexpr std::string_view kOtherWeights =
      "download the folder again, or check that config.json belongs to these weights";
  if (!missing.empty())
    throw Error(ErrorKind::model, "the checkpoint lacks " + std::to_string(missing.size()) +
                                      " tensor(s) that the model needs: " + list_of(missing))
        .hint(kOtherWeights);
  if (!mismatched.empty())
    throw Error(ErrorKind::model, std::to_string(mismatched.size()) +
                                      " tensor(s) do not fit the model: " + list_of(mismatched))
        .hint(kOtherWeights);
  require_model_dtype(dtype);
  if (!refusal.empty()) throw Error(ErrorKind::model, refusal);
  if (!unportable.empty())
    throw Error(ErrorKind::usage,
                unportable.front() +
                    (unportable.size() > 1
                         ? " (and " + std::to_string(unportable.size() - 1) + " modules more)"
                         : ""));
  if (!strict) return;
  const std::string relax = "leave out --strict to go on without ";
  std::vector<std::string> dense;
  for (const auto& entry : entries)
    if (entry.unsupported) dense.push_back(quote(entry.spec.path) + " (" + entry.reason + ")");
  if (!dense.empty())
    throw Error(ErrorKind::coverage,
                std::to_string(dense.size()) + " module(s) stay dense: " + list_of(dense))
        .hint("leave out --strict to keep them dense, or name them in a skip list");
  if (!unmatched.empty())
    throw Error(ErrorKind::coverage, std::to_string(unmatched.size()) +
                                         " pattern(s) matched nothing: " + list_of(unmatched))
        .hint(relax + "them");
  if (!unexpected.empty())
    throw Error(ErrorKind::coverage,
                std::to_string(unexpected.size()) +
                    " tensor(s) of the checkpoint belong to no module: " + list_of(unexpected))
        .hint(relax + "them");
  if (!doubts.empty())
    throw Error(
        ErrorKind::model,
        doubts.front() +
            (doubts.size() > 1 ? "; and " + std::to_string(doubts.size() - 1) + " more" : ""))
        .hint(relax + "them");
}

Value Plan::to_value() const {
  Value out;
  out.set("method", method.empty() ? Value() : Value(method));
  out.set("plugin", plugin.empty() ? Value() : Value(plugin));
  out.set("settings", settings);
  out.set("pre_quantized", pre_quantized);
  out.set("dtype", dtype_word(dtype));
  out.set("bytes_before", static_cast<std::int64_t>(bytes_before()));
  out.set("bytes_after", static_cast<std::int64_t>(bytes_after()));
  out.set("bits_per_weight", bits_per_weight());
  Value::Array modules;
  for (const auto& entry : entries) {
    Value row;
    row.set("path", entry.spec.path);
    row.set("class", entry.spec.class_name);
    row.set("action", word(entry.action));
    row.set("reason", entry.reason);
    row.set("device", entry.spec.device.str());
    if (entry.spec.in_features) {
      row.set("in_features", entry.spec.in_features);
      row.set("out_features", entry.spec.out_features);
    }
    if (!entry.replacement.empty()) row.set("replacement", entry.replacement);
    if (!entry.plugin.empty()) row.set("plugin", entry.plugin);
    if (!entry.settings.empty()) row.set("settings", entry.settings);
    if (!entry.kernel.empty()) row.set("kernel", entry.kernel);
    if (entry.unsupported) row.set("unsupported", true);
    row.set("bytes_before", static_cast<std::int64_t>(entry.bytes_before));
    row.set("bytes_after", static_cast<std::int64_t>(entry.bytes_after));
    modules.push_back(std::move(row));
  }
  out.set("modules", std::move(modules));
  out.set("tied", to_values(tied));
  out.set("missing", to_values(missing));
  out.set("mismatched", to_values(mismatched));
  out.set("unexpected", to_values(unexpected));
  out.set("detected", to_values(detected));
  out.set("unloaded", unloaded_rows(*this));
  out.set("unmatched", to_values(unmatched));
  out.set("notes", to_values(notes));
  out.set("doubts", to_values(doubts));
  out.set("unportable", to_values(unportable));
  out.set("refusal", refusal.empty() ? Value() : Value(refusal));
  out.set("bytes_in_checkpoint", static_cast<std::int64_t>(bytes_in_checkpoint));
  out.set("bytes_unused", static_cast<std::int64_t>(bytes_unused));
  return out;
}

}  // namespace graft
