#include "reporting/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>

#include "calibrating/job_file.h"
#include "text/utf8.h"

namespace graft {
namespace {

namespace fs = std::filesystem;

/// The number with as many significant digits as people read.
Value rounded(double number, int digits = 4) {
  if (!std::isfinite(number)) return {};
  char text[40];
  std::snprintf(text, sizeof(text), "%.*g", digits, number);
  return std::strtod(text, nullptr);
}

Value megabytes(std::uint64_t bytes) { return rounded(static_cast<double>(bytes) / 1e6); }

std::string plural(std::int64_t number, const std::string& one, const std::string& many) {
  return std::to_string(number) + " " + (number == 1 ? one : many);
}

Value sizes_of(const Plan& plan) {
  Value out;
  out.set("quantized_modules", static_cast<std::int64_t>(plan.count(Action::quantize)));
  out.set("kept_modules", static_cast<std::int64_t>(plan.count(Action::keep)));
  out.set("bytes_before", static_cast<std::int64_t>(plan.bytes_before()));
  out.set("bytes_after", static_cast<std::int64_t>(plan.bytes_after()));
  out.set("megabytes_before", megabytes(plan.bytes_before()));
  out.set("megabytes_after", megabytes(plan.bytes_after()));
  out.set("bits_per_weight", rounded(plan.bits_per_weight()));
  return out;
}

Value describe(const ReportedText& text) {
  const auto ids = text.ids.contiguous();
  const auto* first = ids.const_data_ptr<std::int64_t>();
  const std::set<std::int64_t> distinct(first, first + ids.numel());
  Value out;
  out.set("file", to_valid_utf8(text.file));
  out.set("samples", ids.size(0));
  out.set("seq_len", ids.size(1));
  out.set("tokens", ids.numel());
  out.set("distinct_tokens", static_cast<std::int64_t>(distinct.size()));
  out.set("crc32", checksum({reinterpret_cast<const char*>(first), ids.nbytes()}));
  return out;
}

Value rows_of(const std::vector<GroupReport>& groups) {
  Value::Array out;
  for (const auto& group : groups) {
    Value row;
    row.set("modules", Value::Array(group.modules.begin(), group.modules.end()));
    row.set("tokens", group.tokens);
    row.set("relative_error", group.relative_error < 0 ? Value() : rounded(group.relative_error));
    Value::Array errors;
    for (const double error : group.module_errors) errors.push_back(rounded(error));
    row.set("module_errors", std::move(errors));
    row.set("fallback", group.fallback.empty() ? Value() : Value(group.fallback));
    out.push_back(std::move(row));
  }
  return out;
}

Value polished_of(const std::vector<LayerReport>& layers) {
  Value::Array out;
  for (const auto& layer : layers) {
    Value row = to_value(layer);
    for (const char* key : {"error_before", "error_after", "changed"})
      if (const Value* value = row.find(key)) row.set(key, rounded(value->as_double()));
    row.erase("seconds");
    out.push_back(std::move(row));
  }
  return out;
}

/// Why modules were quantized in a plainer way, and how many for each reason.
Value fallbacks_of(const std::vector<GroupReport>& groups) {
  std::map<std::string, std::int64_t> reasons;
  for (const auto& group : groups)
    if (!group.fallback.empty())
      reasons[group.fallback] += static_cast<std::int64_t>(group.modules.size());
  Value::Array out;
  for (const auto& [reason, modules] : reasons) {
    Value row;
    row.set("reason", reason);
    row.set("modules", modules);
    out.push_back(std::move(row));
  }
  return out;
}

/// Tokens of each expert, where modules lie below "experts.N".
Value experts_of(const std::vector<GroupReport>& groups) {
  constexpr std::string_view kMark = ".experts.";
  std::vector<std::string> order;
  std::map<std::string, std::map<std::int64_t, std::int64_t>> found;
  for (const auto& group : groups) {
    const std::string& path = group.modules.front();
    const auto at = path.find(kMark);
    if (at == std::string::npos) continue;
    char* end = nullptr;
    const char* number = path.c_str() + at + kMark.size();
    const std::int64_t expert = std::strtoll(number, &end, 10);
    if (end == number) continue;
    const std::string all = path.substr(0, at + kMark.size() - 1);
    if (!found.contains(all)) order.push_back(all);
    auto& tokens = found[all][expert];
    tokens = std::max(tokens, group.tokens);
  }
  Value::Array out;
  for (const auto& path : order) {
    Value::Array tokens;
    std::int64_t fewest = -1, most = 0, without = 0;
    for (const auto& [expert, count] : found.at(path)) {
      tokens.emplace_back(count);
      fewest = fewest < 0 ? count : std::min(fewest, count);
      most = std::max(most, count);
      without += count == 0;
    }
    Value row;
    row.set("path", path);
    row.set("experts", static_cast<std::int64_t>(tokens.size()));
    row.set("without_tokens", without);
    row.set("fewest_tokens", fewest);
    row.set("most_tokens", most);
    row.set("tokens", std::move(tokens));
    out.push_back(std::move(row));
  }
  return out;
}

Value notes_of(const LoadedModel& loaded, const ReportInput& input) {
  Value::Array out;
  if (input.calibration && input.calibration->left_out > 0)
    out.emplace_back(plural(input.calibration->left_out, "calibration sample was",
                            "calibration samples were") +
                     " one token over and over, as padding is, and not used");
  std::map<std::string, std::int64_t> inputs;
  for (const auto& entry : loaded.plan.entries) inputs[entry.spec.path] = entry.spec.in_features;
  std::int64_t few = 0;
  for (const auto& group : loaded.calibration)
    if (group.tokens > 0)
      for (const auto& path : group.modules) few += group.tokens < inputs[path];
  if (few > 0)
    out.emplace_back(plural(few, "module", "modules") +
                     " saw fewer tokens than they have inputs: more calibration text is better");
  if (input.measured && input.measured->not_finite > 0)
    out.emplace_back("the logits of " +
                     plural(input.measured->not_finite, "token", "tokens") +
                     " are not finite, so nothing could be measured over tokens");
  return out;
}

}  // namespace

std::int64_t fallback_modules(const std::vector<GroupReport>& groups) {
  std::int64_t out = 0;
  for (const auto& group : groups)
    if (!group.fallback.empty()) out += static_cast<std::int64_t>(group.modules.size());
  return out;
}

Value reported(const Comparison& comparison, const ReportedText& text) {
  Value out = to_value(comparison);
  for (auto& [key, value] : out.as_object()) {
    if (value.is_double())
      value = rounded(value.as_double(), key.starts_with("perplexity") ? 5 : 4);
    if (value.is_array())
      for (auto& item : value.as_array())
        if (item.is_double()) item = rounded(item.as_double());
  }
  const Value about = describe(text);
  out.set("file", about.at("file"));
  out.set("crc32", about.at("crc32"));
  return out;
}

Value make_report(const LoadedModel& loaded, const ReportInput& input) {
  const Plan& plan = loaded.plan;
  Value out;
  out.set("graft", GRAFT_VERSION);
  out.set("model", to_valid_utf8(input.model));
  out.set("base_model", input.base_model.empty() ? Value() : Value(input.base_model));
  out.set("model_type", loaded.checkpoint.config().get_string("model_type", ""));
  out.set("method", plan.method);
  out.set("summary", plan.settings);
  out.set("call", input.call);
  out.set("sizes", sizes_of(plan));
  Value calibration;
  if (input.calibration) {
    calibration = describe(*input.calibration);
    calibration.set("left_out", input.calibration->left_out);
  }
  out.set("calibration", std::move(calibration));
  out.set("comparison", input.measured && input.measured_on
                            ? reported(*input.measured, *input.measured_on)
                            : Value());
  out.set("fallback_modules", fallback_modules(loaded.calibration));
  out.set("fallbacks", fallbacks_of(loaded.calibration));
  out.set("notes", notes_of(loaded, input));
  out.set("experts", experts_of(loaded.calibration));
  out.set("polished", polished_of(loaded.polished));
  out.set("groups", rows_of(loaded.calibration));
  return out;
}

std::string base_model_name(const Checkpoint& checkpoint) {
  const auto is_name = [](const std::string& text) {
    const auto slash = text.find('/');
    return slash != std::string::npos && slash > 0 && slash + 1 < text.size() &&
           text.find('/', slash + 1) == std::string::npos &&
           text.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                  "-_./") == std::string::npos &&
           text.front() != '.';
  };
  const fs::path folder = fs::absolute(checkpoint.folder()).lexically_normal();
  constexpr std::string_view kCached = "models--";
  for (fs::path at = folder; at.has_relative_path(); at = at.parent_path()) {
    std::string name = at.filename().string();
    if (!name.starts_with(kCached) || at == folder) continue;
    name.erase(0, kCached.size());
    if (const auto dashes = name.find("--"); dashes != std::string::npos)
      name.replace(dashes, 2, "/");
    if (is_name(name)) return name;
  }
  const Value* named = checkpoint.config().find("_name_or_path");
  return named && named->is_string() && is_name(named->as_string()) ? named->as_string() : "";
}

}  // namespace graft
