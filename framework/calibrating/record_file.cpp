#include "calibrating/record_file.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <boost/crc.hpp>
#include <cmath>
#include <string_view>

#include "applying/checkpoint_tensors.h"
#include "graft/checkpoint.h"
#include "graft/error.h"

namespace graft {

namespace {

/// A record is a safetensors file: "0.NAME" is a tensor of the first module, and beside those there
/// are kRecordSum, [1] int64, and
constexpr const char *kReport = "report",  ///< JSON [bytes]: the row, as in to_value
    *kScales = "scales";                   ///< when there are any

using Named = std::map<std::string, at::Tensor>;

GroupReport report_from(const Value& row) {
  GroupReport out;
  out.modules = row.get_strings("modules");
  out.tokens = row.get_int("tokens", 0);
  out.relative_error = row.get_double("relative_error", out.relative_error);
  if (const Value* errors = row.find("module_errors"))
    for (const auto& error : errors->as_array()) out.module_errors.push_back(error.as_double());
  out.fallback = row.get_string("fallback", "");
  out.seconds = row.get_double("seconds", 0);
  return out;
}

LayerReport layer_report_from(const Value& row) {
  LayerReport out;
  out.layer = static_cast<std::size_t>(row.get_int("layer", 0));
  out.modules = row.get_strings("modules");
  out.error_before = row.get_double("error_before", out.error_before);
  out.error_after = row.get_double("error_after", out.error_after);
  out.changed = row.get_double("changed", 0);
  out.left = row.get_string("left", "");
  out.seconds = row.get_double("seconds", 0);
  return out;
}

}  // namespace

Value to_value(const LayerReport& report) {
  const auto number = [](double value) { return std::isfinite(value) ? Value(value) : Value(); };
  Value out;
  out.set("layer", static_cast<std::int64_t>(report.layer));
  out.set("modules", Value::Array(report.modules.begin(), report.modules.end()));
  out.set("error_before", number(report.error_before));
  out.set("error_after", number(report.error_after));
  out.set("changed", report.changed);
  out.set("left", report.left.empty() ? Value() : Value(report.left));
  out.set("seconds", report.seconds);
  return out;
}

Value to_value(const std::vector<GroupReport>& report) {
  Value::Array groups;
  for (const auto& group : report) {
    Value row;
    row.set("modules", Value::Array(group.modules.begin(), group.modules.end()));
    row.set("tokens", group.tokens);
    row.set("relative_error", group.relative_error < 0 ? Value() : Value(group.relative_error));
    row.set("module_errors",
            Value::Array(group.module_errors.begin(), group.module_errors.end()));
    row.set("fallback", group.fallback.empty() ? Value() : Value(group.fallback));
    row.set("seconds", group.seconds);
    groups.push_back(std::move(row));
  }
  Value out;
  out.set("groups", std::move(groups));
  return out;
}

std::int64_t record_checksum(const Named& tensors) {
  boost::crc_32_type sum;
  for (const auto& [name, tensor] : tensors) {
    const std::string start =
        name + '\0' + c10::toString(tensor.scalar_type()) + c10::str(tensor.sizes());
    sum.process_bytes(start.data(), start.size());
    sum.process_bytes(tensor.const_data_ptr(), tensor.nbytes());
  }
  return sum.checksum();
}

GroupRecord read_record(const std::filesystem::path& path,
                        const std::vector<std::string>& modules) {
  const Checkpoint file = Checkpoint::open_file(path);
  Named tensors;
  for (const auto& info : file.tensors()) tensors.emplace(info.name, read_tensor(file, info));
  const auto take = [&](const std::string& name) {
    auto found = tensors.extract(name);
    return found ? found.mapped() : at::Tensor();
  };
  const auto sum = take(kRecordSum);
  if (!sum.defined() || sum.numel() != 1 || sum.scalar_type() != at::kLong)
    throw Error(ErrorKind::model, "there is no checksum");
  if (const auto found = record_checksum(tensors), expected = sum.item<std::int64_t>();
      found != expected)
    throw Error(ErrorKind::model, "the checksum is wrong")
        .expected(std::to_string(expected))
        .found(std::to_string(found));
  GroupRecord out;
  const auto report = take(kReport);
  const auto text =
      report.defined() && report.scalar_type() == at::kByte
          ? std::string_view(static_cast<const char*>(report.const_data_ptr()), report.nbytes())
          : std::string_view();
  const Value row = parse_json(text);
  out.row = report_from(row);
  if (const Value* layer = row.find("layer")) out.layer = layer_report_from(*layer);
  if (out.row.modules != modules)
    throw Error(ErrorKind::model, "it is of another group")
        .expected(quote(modules.front()))
        .found(out.row.modules.empty() ? "none" : quote(out.row.modules.front()));
  out.scales = take(kScales);
  out.modules.resize(modules.size());
  for (std::size_t i = 0; i < modules.size(); ++i) {
    const std::string start = std::to_string(i) + ".";
    for (auto& [name, tensor] : tensors)
      if (name.starts_with(start)) out.modules[i].set(name.substr(start.size()), tensor);
  }
  return out;
}

void write_record(const std::filesystem::path& file, const GroupRecord& record) {
  Named tensors;
  for (std::size_t i = 0; i < record.modules.size(); ++i)
    for (const auto& [name, tensor] : record.modules[i])
      tensors.emplace(std::to_string(i) + "." + name, tensor.detach().contiguous());
  if (record.scales.defined()) tensors.emplace(kScales, record.scales.contiguous());
  Value described = to_value({record.row}).at("groups").as_array().front();
  if (record.layer) described.set("layer", to_value(*record.layer));
  const auto row = to_json(described);
  auto report = at::empty({static_cast<std::int64_t>(row.size())}, at::kByte);
  std::copy(row.begin(), row.end(), static_cast<char*>(report.mutable_data_ptr()));
  tensors.emplace(kReport, report);
  tensors.emplace(kRecordSum, at::full({1}, record_checksum(tensors), at::kLong));
  std::vector<TensorToWrite> out;
  for (const auto& [name, tensor] : tensors) out.push_back(to_write(name, tensor));
  write_tensor_file(file, std::move(out));
}

}  // namespace graft
