#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace graft {

/// How GGUF files store the elements of a tensor: blocks of `elements` values in `bytes` bytes. The
/// names and numbers are those of ggml: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
struct BlockFormat {
  std::uint32_t id;
  std::string_view name;          ///< "Q4_K"
  std::uint32_t elements, bytes;  ///< 0 for a format that is known by name only
  /// Float32 values of `count` blocks at any address; nullptr for a format known by name only.
  void (*dequantize)(const std::byte* blocks, std::uint64_t count, float* out) noexcept;
};

/// The format with that number in a file; nullptr for one that ggml does not have (any more).
const BlockFormat* block_format(std::uint32_t id);

/// "F32, F16, Q4_0, ...": those that can be read.
std::string readable_block_formats();

/// float16 and bfloat16 by their bits. To the narrow types: round to nearest, ties to even; what is
/// too large becomes infinity; a NaN stays one.
float float_of_half(std::uint16_t bits);
std::uint16_t half_of_float(float value);
std::uint16_t bfloat16_of_float(float value);

}  // namespace graft
