#pragma once

#include <cstdint>

// The layout of quantized weights that the CUDA kernels multiply with. It knows numbers of bits,
// not checkpoint formats. Everything here is plain arithmetic, so that the host can check it
// without a device.
//
// A tile is 16 outputs x 64 inputs, 512 bytes, in the order in which the threads of a warp hold the
// left operand of mma.m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16"; wgmma takes the same
// from registers): lane l reads its 16 bytes at 16 * l, word s of them is step s of 16 inputs. Row
// r of the operand is output 2 r of the tile below 8 and 2 (r - 8) + 1 from 8 on, so that a lane's
// two rows are neighbours in the result. Four tiles of outputs, then steps of 64 inputs, then
// further outputs: what a thread block streams lies in one piece.

#if defined(__CUDACC__)
#define GRAFT_HOST_DEVICE __host__ __device__
#else
#define GRAFT_HOST_DEVICE
#endif

namespace graft::cuda {

inline constexpr std::int64_t kTileOutputs = 16, kTileInputs = 64, kTileBytes = 512;
inline constexpr std::int64_t kBandOutputs = 64;    ///< four tiles; outputs are padded to it
inline constexpr std::int64_t kInputPadding = 128;  ///< inputs are padded to it

/// How a code becomes a number, before the scale of its group.
enum class CodeKind {
  int4,    ///< code - zero
  table4,  ///< table[code]
};

struct FragmentShape {
  CodeKind kind = CodeKind::int4;
  std::int64_t n = 0, k = 0;
  std::int64_t group = 0;  ///< inputs of a group: a power of two from 32 on, or k
  std::int64_t bands = 0;  ///< of 64 outputs
  std::int64_t steps = 0;  ///< of 64 inputs; even
  std::int64_t groups = 0;
  int group_shift = 0;  ///< group of input i: i >> group_shift
  std::int64_t code_bytes = 0;
  /// 32-bit words [band][group][64]. int4: scale in the lower half, zero point in the upper one, as
  /// a whole number. table4: the scale as float32.
  std::int64_t word_count = 0;
};

/// Whether these kernels take such a weight: n and k multiples of 8, groups of 2^i from 32 on or
/// one.
constexpr bool fits_fragments(std::int64_t n, std::int64_t k, std::int64_t group) {
  const bool one = group >= k, power = group >= 32 && (group & (group - 1)) == 0;
  return n > 0 && k > 0 && n % 8 == 0 && k % 8 == 0 && (one || power);
}

/// Of a weight that fits.
constexpr FragmentShape fragment_shape(CodeKind kind, std::int64_t n, std::int64_t k,
                                       std::int64_t group) {
  FragmentShape out;
  out.kind = kind;
  out.n = n;
  out.k = k;
  out.group = group < k ? group : k;
  out.bands = (n + kBandOutputs - 1) / kBandOutputs;
  out.steps = (k + kInputPadding - 1) / kInputPadding * (kInputPadding / kTileInputs);
  if (group >= k)
    out.group_shift = 31;
  else
    while ((std::int64_t{1} << out.group_shift) < group) ++out.group_shift;
  // Groups that begin in the padding are there too: words 0.
  out.groups = group >= k ? 1 : ((out.steps * kTileInputs - 1) >> out.group_shift) + 1;
  out.code_bytes = out.bands * out.steps * 4 * kTileBytes;
  out.word_count = out.bands * out.groups * kBandOutputs;
  return out;
}

struct CodePlace {
  std::int64_t word;  ///< 32-bit word
  int shift;          ///< of the four bits
};

/// Where the code of output n and input k is.
GRAFT_HOST_DEVICE constexpr CodePlace code_place(const FragmentShape& shape, std::int64_t n,
                                                 std::int64_t k) {
  const std::int64_t band = n / kBandOutputs, tile = n % kBandOutputs / kTileOutputs;
  const int output = static_cast<int>(n % kTileOutputs), input = static_cast<int>(k % kTileInputs);
  const int row = output / 2 + output % 2 * 8;
  const int step = input / 16, column = input % 16;
  const int lane = row % 8 * 4 + column % 8 / 2;
  const int reg = row / 8 + column / 8 * 2;
  const std::int64_t first = ((band * shape.steps + k / kTileInputs) * 4 + tile) * (kTileBytes / 4);
  // Pairs of a register: int4 has them 16 bits apart, where masks make numbers of both at once; a
  // table has them in one byte, which is looked up as a whole.
  const int shift =
      shape.kind == CodeKind::int4 ? 4 * reg + 16 * (column % 2) : 8 * reg + 4 * (column % 2);
  return {first + lane * 4 + step, shift};
}

/// Where the word of output n and a group is.
GRAFT_HOST_DEVICE constexpr std::int64_t word_place(const FragmentShape& shape, std::int64_t n,
                                                    std::int64_t group) {
  return (n / kBandOutputs * shape.groups + group) * kBandOutputs + n % kBandOutputs;
}

}  // namespace graft::cuda
