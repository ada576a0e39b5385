#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

// wgmma.mma_async.m64nNk16 with the left operand in registers and the right one in shared memory,
// inputs fastest, in rows of 128 bytes with the 128-byte swizzle (PTX ISA, "Asynchronous warpgroup
// level matrix multiply-accumulate"). Sums are float32 [N / 8][4]: like those of mma.m16n8k16.

namespace graft::cuda {

/// The lower half of what wgmma knows a matrix in shared memory by; `address` is that of its first
/// row, a multiple of 1024, plus 32 bytes for each 16 inputs.
__device__ __forceinline__ std::uint32_t matrix_at(std::uint32_t address) {
  return 1U << 16 | (address >> 4 & 0x3FFF);
}
/// And the whole: rows of 128 bytes, swizzled, in blocks of eight.
__device__ __forceinline__ std::uint64_t whole_matrix(std::uint32_t lower) {
  constexpr std::uint32_t kSwizzle128 = 1U << 30, kEightRows = 1024 >> 4;
  std::uint64_t out;
  asm("mov.b64 %0, {%1, %2};" : "=l"(out) : "r"(lower), "r"(kSwizzle128 | kEightRows));
  return out;
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// The operand list is all that differs between widths.
#define GRAFT_D8(i)                                                              \
  "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3]), "+f"(d[i + 1][0]), \
      "+f"(d[i + 1][1]), "+f"(d[i + 1][2]), "+f"(d[i + 1][3])
#define GRAFT_D16(i) GRAFT_D8(i), GRAFT_D8(i + 2)
#define GRAFT_D32(i) GRAFT_D16(i), GRAFT_D16(i + 4)
#define GRAFT_D64(i) GRAFT_D32(i), GRAFT_D32(i + 8)
#define GRAFT_D128(i) GRAFT_D64(i), GRAFT_D64(i + 16)
#define GRAFT_R16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define GRAFT_R32                                                          \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define GRAFT_R64                                                                    \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define GRAFT_R128                                                                               \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "             \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define GRAFT_WGMMA(rows, regs, type, keep, a0, a1, a2, a3, matrix)                        \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #rows "k16.f32." type "." type          \
               " {" GRAFT_R##regs "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #matrix \
                                  ", " #keep ", 1, 1, 0;"                                  \
               : GRAFT_D##regs(0)                                                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define GRAFT_WGMMA_OF_TYPE(type, keep)                   \
  if constexpr (kRows == 32)                              \
    GRAFT_WGMMA(32, 16, type, keep, 16, 17, 18, 19, 20);  \
  else if constexpr (kRows == 64)                         \
    GRAFT_WGMMA(64, 32, type, keep, 32, 33, 34, 35, 36);  \
  else if constexpr (kRows == 128)                        \
    GRAFT_WGMMA(128, 64, type, keep, 64, 65, 66, 67, 68); \
  else if constexpr (kRows == 256)                        \
    GRAFT_WGMMA(256, 128, type, keep, 128, 129, 130, 131, 132);

/// d += a b, or d = a b where it does not kAdd; b: matrix_at(). kRows: rows of x.
template <class T, int kRows, bool kAdd = true>
__device__ __forceinline__ void wgmma(float (&d)[kRows / 8][4], const std::uint32_t (&a)[4],
                                      std::uint32_t matrix) {
  const std::uint64_t b = whole_matrix(matrix);
  if constexpr (std::is_same_v<T, __half>) {
    if constexpr (kAdd) {
      GRAFT_WGMMA_OF_TYPE("f16", 1)
    } else {
      GRAFT_WGMMA_OF_TYPE("f16", 0)
    }
  } else {
    if constexpr (kAdd) {
      GRAFT_WGMMA_OF_TYPE("bf16", 1)
    } else {
      GRAFT_WGMMA_OF_TYPE("bf16", 0)
    }
  }
}

#undef GRAFT_WGMMA_OF_TYPE
#undef GRAFT_WGMMA
#undef GRAFT_D8
#undef GRAFT_D16
#undef GRAFT_R16
#undef GRAFT_D32
#undef GRAFT_R32
#undef GRAFT_D64
#undef GRAFT_R64
#undef GRAFT_D128
#undef GRAFT_R128

}  // namespace graft::cuda
