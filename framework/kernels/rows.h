#pragma once

#include <cstdint>

#include "kernels/activations.h"
#include "kernels/cpu_level.h"

// What a decoder does to its rows between the products with packed weights. Rows are float32; every
// result is rounded to the model's dtype, as LibTorch rounds what it stores. All levels give the
// same bits: sums run in 16 lanes that are added in one order, and multiply-adds are fused
// everywhere. Rows need no alignment and no padding. Nothing is allocated. Any thread.

namespace graft::kernels {

inline constexpr std::int64_t kLanes = 16;

/// Keys and values of one head of the tokens so far, in the model's dtype. Blocks of 32 keys lie
/// across, [block][dim][32], so that 32 scores come from one pass without sums over lanes; a value
/// is a row of `value_stride`. In bfloat16 both interleave elements i and i + 16 of each 32, which
/// a shift and a mask take apart.
inline constexpr std::int64_t kKeyBlock = 32;
struct HeadCache {
  ElementType type = ElementType::f32;
  std::int64_t dim = 0;
  void* keys = nullptr;
  void* values = nullptr;
};
std::int64_t value_stride(std::int64_t dim);
std::int64_t key_bytes(ElementType type, std::int64_t dim, std::int64_t capacity);
std::int64_t value_bytes(ElementType type, std::int64_t dim, std::int64_t capacity);
/// Writes key and value [dim] of the token at `position`.
void remember(const HeadCache& cache, std::int64_t position, const float* key, const float* value);

/// Softmax attention of a few rows over one head's cache: row r sees the keys [first[r], last[r]),
/// at least one. Keys pass in spans of 256 that begin at multiples of 256, so a row's result does
/// not depend on the rows beside it.
inline constexpr std::int64_t kAttendRows = 4;
struct AttendArgs {
  HeadCache cache;
  float scale = 1;
  std::int64_t rows = 0;  ///< at most kAttendRows
  const float* q[kAttendRows];
  std::int64_t first[kAttendRows], last[kAttendRows];
  float* out[kAttendRows];  ///< [value_stride(dim)]; what is beyond dim is scratch
};

/// Rows of x times rows of a dense weight.
inline constexpr std::int64_t kDenseRows = 4;
struct DenseArgs {
  ElementType type = ElementType::f32;  ///< of the weight
  const void* weight = nullptr;         ///< of the first output, [count][k]
  std::int64_t k = 0, count = 0;
  std::int64_t m = 0;        ///< at most kDenseRows
  const float* x = nullptr;  ///< [m][dense_stride(k)], as `arrange` left it
  float* out = nullptr;      ///< [m][out_stride]
  std::int64_t out_stride = 0;
};
std::int64_t dense_stride(std::int64_t k);

/// The operations of one level, rounding to one dtype.
struct RowOperations {
  /// Elements of the dtype as float32.
  void (*widen)(const void* from, std::int64_t n, float* out);
  void (*round)(float* x, std::int64_t n);
  /// round(weight * round(x / sqrt(mean(x^2) + eps))).
  void (*rms_norm)(const float* x, const float* weight, std::int64_t n, float eps, float* out);
  /// x += y.
  void (*add)(float* x, const float* y, std::int64_t n);
  /// Rotary embedding of the first `dim` elements of a head, halves against each other; cos and sin
  /// [dim].
  void (*rotate)(float* x, const float* cos, const float* sin, std::int64_t dim);
  /// gate = round(silu(gate)) * up.
  void (*silu_times)(float* gate, const float* up, std::int64_t n);
  void (*attend)(const AttendArgs& args);
  /// x [k] in the order in which `dense` reads a weight of the dtype: out [dense_stride(k)].
  void (*arrange)(const float* x, std::int64_t k, float* out);
  /// Sums in float32, not rounded.
  void (*dense)(const DenseArgs& args);
};
const RowOperations& row_operations(CpuLevel level, ElementType type);

const RowOperations& row_operations_scalar(ElementType type);  ///< the oracle
#if defined(__x86_64__)
const RowOperations& row_operations_avx2(ElementType type);
const RowOperations& row_operations_avx512(ElementType type);
#endif

}  // namespace graft::kernels
