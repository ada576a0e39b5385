#include "kernels/four_bit.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu_level.h"

namespace graft::bnb {
namespace {

Thresholds make_thresholds(QuantType type) {
  Thresholds out{};
  if (type == QuantType::nf4)
    for (std::uint8_t i = 0; i < 16; ++i) out.codes[i] = i;
  else
    out.codes = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3};
  const auto& table = code_table(type);
  for (std::size_t i = 0; i < 15; ++i)
    out.borders[i] = (table[out.codes[i]] + table[out.codes[i + 1]]) / 2.0F;
  return out;
}

std::uint8_t code_of(float scaled, const Thresholds& t) {
  std::size_t below = 0;
  for (const float border : t.borders) below += border < scaled;
  return t.codes[below];
}

/// bitsandbytes looks a scaled value up in a table of 65536 entries, so that a few are not the
/// nearest code.
const std::vector<std::uint8_t>& nested_lookup() {
  static const std::vector<std::uint8_t> kLookup = [] {
    const auto& map = dynamic_map();
    std::vector<std::uint8_t> lookup(65536);
    std::size_t code = 0;
    for (std::size_t i = 0; i < lookup.size(); ++i) {
      const float value = -1.0F + 2.0F * static_cast<float>(i) / 65535.0F;
      while (code + 1 < map.size() && std::abs(map[code + 1] - value) < std::abs(map[code] - value))
        ++code;
      lookup[i] = static_cast<std::uint8_t>(code);
    }
    return lookup;
  }();
  return kLookup;
}

constexpr std::int64_t kNestedBlock = 256;

/// Elements [begin, end) as float32.
void widen(const void* x, kernels::ElementType element, std::int64_t begin, std::int64_t end,
           float* out) {
  for (std::int64_t i = begin; i < end; ++i) {
    if (element == kernels::ElementType::f32) {
      *out++ = static_cast<const float*>(x)[i];
      continue;
    }
    const std::uint16_t half = static_cast<const std::uint16_t*>(x)[i];
    if (element == kernels::ElementType::f16) {
      _Float16 value;
      std::memcpy(&value, &half, 2);
      *out++ = static_cast<float>(value);
    } else {
      const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
      std::memcpy(out++, &bits, 4);
    }
  }
}

/// Block after block through the oracle. False for values that are not finite.
bool quantize_slowly(const void* x, kernels::ElementType element, std::int64_t count,
                     std::int64_t blocksize, QuantType type, std::int64_t first, std::int64_t last,
                     std::uint8_t* packed, float* absmax) {
  std::array<float, 4096> wide;
  for (std::int64_t block = first; block < last; ++block) {
    const std::int64_t begin = block * blocksize, end = std::min(begin + blocksize, count);
    widen(x, element, begin, end, wide.data());
    if (!std::all_of(wide.data(), wide.data() + (end - begin),
                     [](float value) { return std::isfinite(value); }))
      return false;
    quantize_blocks(wide.data(), end - begin, blocksize, type, 0, 1, packed + begin / 2,
                    absmax + block);
  }
  return true;
}

}  // namespace

const Thresholds& thresholds(QuantType type) {
  static const Thresholds kNf4 = make_thresholds(QuantType::nf4);
  static const Thresholds kFp4 = make_thresholds(QuantType::fp4);
  return type == QuantType::nf4 ? kNf4 : kFp4;
}

void quantize_blocks(const float* x, std::int64_t count, std::int64_t blocksize, QuantType type,
                     std::int64_t first, std::int64_t last, std::uint8_t* packed, float* absmax) {
  const Thresholds& t = thresholds(type);
  for (std::int64_t block = first; block < last; ++block) {
    const std::int64_t begin = block * blocksize;
    const std::int64_t end = std::min(begin + blocksize, count);
    float most = 0;
    for (std::int64_t i = begin; i < end; ++i) most = std::max(most, std::abs(x[i]));
    const bool partial = end - begin < blocksize;
    const float divisor = std::max(most, 1e-38F);
    const float reciprocal = 1.0F / divisor;
    absmax[block] = partial ? divisor : most;
    const auto code = [&](std::int64_t i) -> unsigned {
      const float scaled = partial ? x[i] / divisor : x[i] * reciprocal;
      return code_of(std::clamp(scaled, -1.0F, 1.0F), t);
    };
    for (std::int64_t i = begin; i < end; i += 2) {
      const unsigned low = i + 1 < end ? code(i + 1) : code_of(0.0F, t);
      packed[i / 2] = static_cast<std::uint8_t>(code(i) << 4 | low);
    }
  }
}

bool quantize_elements_at(kernels::CpuLevel level, const void* x, kernels::ElementType element,
                          std::int64_t count, std::int64_t blocksize, QuantType type,
                          std::int64_t first, std::int64_t last, std::uint8_t* packed,
                          float* absmax) {
#if defined(__x86_64__)
  if (level >= kernels::CpuLevel::avx2) {
    const std::int64_t whole = std::max(first, std::min(last, count / blocksize));
    const std::int64_t bytes = element == kernels::ElementType::f32 ? 4 : 2;
    const auto run =
        level == kernels::CpuLevel::avx2 ? &quantize_blocks_avx2 : &quantize_blocks_avx512;
    const std::uint32_t most =
        run(static_cast<const char*>(x) + first * blocksize * bytes, element, blocksize,
            thresholds(type), whole - first, packed + first * blocksize / 2, absmax + first);
    if (most >= 0x7F800000U) return false;
    first = whole;
  }
#else
  (void)level;
#endif
  return quantize_slowly(x, element, count, blocksize, type, first, last, packed, absmax);
}

bool quantize_elements(const void* x, kernels::ElementType element, std::int64_t count,
                       std::int64_t blocksize, QuantType type, std::int64_t first,
                       std::int64_t last, std::uint8_t* packed, float* absmax) {
  return quantize_elements_at(kernels::cpu_level(), x, element, count, blocksize, type, first, last,
                              packed, absmax);
}

void quantize_nested(const float* centred, std::int64_t count, std::uint8_t* codes,
                     float* nested_absmax) {
  const auto& lookup = nested_lookup();
  for (std::int64_t begin = 0; begin < count; begin += kNestedBlock) {
    const std::int64_t end = std::min(begin + kNestedBlock, count);
    float most = 0;
    for (std::int64_t i = begin; i < end; ++i) most = std::max(most, std::abs(centred[i]));
    nested_absmax[begin / kNestedBlock] = most;
    if (most == 0) {
      std::fill(codes + begin, codes + end, std::uint8_t{0});
      continue;
    }
    const float reciprocal = 1.0F / most;
    for (std::int64_t i = begin; i < end; ++i) {
      const float scaled = std::clamp(centred[i] * reciprocal, -1.0F, 1.0F);
      codes[i] = lookup[static_cast<std::size_t>((scaled + 1.0F) * 0.5F * 65535.0F + 0.5F)];
    }
  }
}

void dequantize_nested(const std::uint8_t* codes, std::int64_t count, const float* map,
                       const float* nested_absmax, std::int64_t nested_blocksize, float offset,
                       float* absmax) {
  for (std::int64_t i = 0; i < count; ++i)
    absmax[i] = map[codes[i]] * nested_absmax[i / nested_blocksize] + offset;
}

void dequantize_blocks_scalar(const std::uint8_t* packed, const float* table, const float* absmax,
                              std::int64_t blocksize, std::int64_t begin, std::int64_t count,
                              float* out) {
  for (std::int64_t i = begin; i < begin + count; ++i) {
    const unsigned byte = packed[i / 2];
    out[i - begin] = table[i % 2 ? byte & 15U : byte >> 4] * absmax[i / blocksize];
  }
}

DequantizeBlocks dequantize_blocks() {
#if defined(__x86_64__)
  if (kernels::cpu_level() >= kernels::CpuLevel::avx512) return &dequantize_blocks_avx512;
#endif
  return &dequantize_blocks_scalar;
}

}  // namespace graft::bnb
