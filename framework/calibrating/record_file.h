#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "graft/calibration.h"
#include "graft/tensors.h"

namespace graft {

/// A group of modules that was quantized, or the modules of a layer that was polished.
struct GroupRecord {
  std::vector<Tensors> modules;  ///< of each, as Quantizer::save gives them; empty: left as it was
  at::Tensor scales;             ///< what its producer was told to divide by; undefined: nothing
  GroupReport row;               ///< of a layer: the names of its modules
  std::optional<LayerReport> layer{};
};

/// Reads the record of the group of these modules. Throws an Error for a file that is not as
/// write_record left it.
GroupRecord read_record(const std::filesystem::path& file, const std::vector<std::string>& modules);
/// Makes or replaces the file, which is whole or as it was. Throws Error(resource).
void write_record(const std::filesystem::path& file, const GroupRecord& record);

/// The name in a record of its checksum, and that of all the others.
inline constexpr const char* kRecordSum = "crc32";
std::int64_t record_checksum(const std::map<std::string, at::Tensor>& tensors);

}  // namespace graft
