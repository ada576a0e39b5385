#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "graft/checkpoint.h"

namespace graft {

/// The limit of the format's own library.
inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
/// LibTorch iterates over at most 64 dimensions.
inline constexpr std::size_t kMaxDimensions = 64;
/// The file starts with the length of the header, 8 bytes, little-endian.
inline constexpr std::uint64_t kLengthBytes = 8;

/// The checked length of the header of a file of `file_size` bytes that starts with `start`, which
/// holds its first bytes (64 are enough). Throws Error(model) for a length that cannot be, saying
/// when the file looks like something else: a Git LFS pointer, a web page, a pickle, a GGUF file.
std::uint64_t safetensors_header_length(std::string_view start, std::uint64_t file_size);

/// Parses and checks the JSON header of a safetensors file: names are unique, ranges fit dtypes and
/// shapes, and cover the rest of the file without hole or overlap. Offsets in the result count from
/// the start of the file; tensors are ordered by offset. Throws Error(model).
/// Time is linear in `header` but for one sort of the tensors; memory is below 16 times its size.
/// Layout: https://github.com/huggingface/safetensors#format
std::vector<TensorInfo> parse_safetensors_header(std::string_view header, std::uint64_t file_size,
                                                 std::size_t max_tensors = kMaxTensors);

/// Bytes of a tensor; throws Error(model) when a dimension is negative or the product overflows.
std::uint64_t tensor_bytes(Dtype dtype, const std::vector<std::int64_t>& shape);

/// "[2, 3]"
std::string shape_text(const std::vector<std::int64_t>& shape);

}  // namespace graft
