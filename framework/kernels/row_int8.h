#pragma once

#include "graft/pool.h"
#include "kernels/activations.h"
#include "kernels/cpu_level.h"
#include "kernels/panels.h"

// LLM.int8 (Dettmers et al. 2022): int8 weights with one scale an output, activations as int8 with
// one scale a row, except columns that hold a large element, which multiply in the dtype of x. The
// integer sums are exact.

namespace graft::kernels {

struct RowInt8Args {
  const PanelShape* shape;    ///< int8, group = k, k below 2^17
  const std::uint8_t* codes;  ///< panels of weight + 128
  const float* scales;        ///< [n]: absmax of each output; a weight is code * scale / 127
  float threshold = 6;        ///< |x| from here on leaves int8; 0: none does
  std::int64_t m = 0;
  const void* x = nullptr;  ///< [m][k]
  ElementType x_type = ElementType::f32;
  std::int64_t x_stride = 0;
  void* y = nullptr;  ///< [m][n]
  ElementType y_type = ElementType::f32;
  std::int64_t y_stride = 0;
  const float* bias = nullptr;
};

/// x passes through float16 on its way to int8 as in bitsandbytes. The same bits at every level and for any number of
/// threads; other rows matter through the columns they take out of int8. A row with NaN gives NaN.
/// The memory of the weight is read until pool.drain() returns. Throws std::bad_alloc.
void multiply_rows_int8(const RowInt8Args& args, const graft_pool& pool);
void multiply_rows_int8_at(CpuLevel level, const RowInt8Args& args, const graft_pool& pool);

// The parts that every level has.

/// A row as float16 in float32 to `values`; marks `columns` [k] where an element reaches the
/// threshold; returns the largest magnitude of the others, NaN when there is a NaN.
using ScanRowFn = float (*)(const void* x, ElementType type, std::int64_t k, float threshold,
                            float* values, std::uint8_t* columns);
/// codes = rint(values * scale), 0 where a column is marked, 8 at a time to `out`, `stride` apart;
/// values up to steps * 8 are there. Returns the negated sum.
using QuantizeRowFn = std::int32_t (*)(const float* values, const std::uint8_t* columns,
                                       std::int64_t steps, float scale, std::uint8_t* out,
                                       std::int64_t stride);
/// `rows` (at most 12) times `panels` (at most 2): sums [rows][panels * 16].
using RowInt8TileFn = void (*)(const PanelShape& shape, const std::uint8_t* codes,
                               std::int64_t panels, const std::uint8_t* x,
                               const std::int32_t* negated_sums, std::int64_t rows,
                               std::int32_t* sums);
float scan_row_scalar(const void* x, ElementType type, std::int64_t k, float threshold,
                      float* values, std::uint8_t* columns);
std::int32_t quantize_row_scalar(const float* values, const std::uint8_t* columns,
                                 std::int64_t steps, float scale, std::uint8_t* out,
                                 std::int64_t stride);
void row_int8_tile_scalar(const PanelShape& shape, const std::uint8_t* codes, std::int64_t panels,
                          const std::uint8_t* x, const std::int32_t* negated_sums,
                          std::int64_t rows, std::int32_t* sums);
#if defined(__x86_64__)
float scan_row_avx2(const void* x, ElementType type, std::int64_t k, float threshold, float* values,
                    std::uint8_t* columns);
std::int32_t quantize_row_avx2(const float* values, const std::uint8_t* columns, std::int64_t steps,
                               float scale, std::uint8_t* out, std::int64_t stride);
void row_int8_tile_avx2(const PanelShape& shape, const std::uint8_t* codes, std::int64_t panels,
                        const std::uint8_t* x, const std::int32_t* negated_sums, std::int64_t rows,
                        std::int32_t* sums);
void row_int8_tile_avx512(const PanelShape& shape, const std::uint8_t* codes, std::int64_t panels,
                          const std::uint8_t* x, const std::int32_t* negated_sums,
                          std::int64_t rows, std::int32_t* sums);
#endif

}  // namespace graft::kernels
