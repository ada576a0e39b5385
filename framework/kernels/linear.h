#pragma once

#include "graft/pool.h"
#include "kernels/activations.h"
#include "kernels/cpu_level.h"
#include "kernels/panels.h"

namespace graft::kernels {

/// y = x W^T + bias.
struct LinearArgs {
  const PanelWeight* weight;
  Act act = Act::a15;
  std::int64_t m = 0;

  const void* x = nullptr;  ///< [m][k]
  ElementType x_type = ElementType::f32;
  std::int64_t x_stride = 0;  ///< elements from row to row

  void* y = nullptr;  ///< [m][n]
  ElementType y_type = ElementType::f32;
  std::int64_t y_stride = 0;
  const float* bias = nullptr;  ///< [n] or null
};

/// The same bits for any number of threads; in a15 and a8 also for any m and at every level. NaN or
/// infinity in a row makes NaN of that row's outputs in a15 and a8. A processor without
/// AVX512_BF16 computes bf16 in f32. Any thread. With few rows the weight's memory is read until
/// pool.drain() returns: call it before the weight goes away. Throws std::bad_alloc.
void multiply(const LinearArgs& args, const graft_pool& pool);

/// The same at a given level, for tests and benchmarks; the machine must have it.
void multiply_at(CpuLevel level, const LinearArgs& args, const graft_pool& pool);

/// Finishes outputs: row + bias as `type`, to the nearest, ties to even. The bits of all levels are
/// the same.
void store_row_scalar(const float* row, const float* bias, std::int64_t count, ElementType type,
                      void* out);
#if defined(__x86_64__)
void store_row_avx2(const float* row, const float* bias, std::int64_t count, ElementType type,
                    void* out);
#endif

}  // namespace graft::kernels
