#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "cuda/fragments.h"

namespace graft::cuda {

/// Of activations and results.
enum class Element { f16, bf16 };

/// A packed weight on a device; borrowed memory, codes and words aligned to 16 bytes.
struct Fragments {
  FragmentShape shape;
  const void* codes = nullptr;
  const std::uint32_t* words = nullptr;
  const float* table = nullptr;     ///< [16], for table4
  Element element = Element::bf16;  ///< that it multiplies with; type of int4's scales
};

/// y = x W^T + bias on the device that is current.
struct ProductArgs {
  Fragments weight;
  std::int64_t m = 0;
  const void* x = nullptr;      ///< [m][k] of the weight's element, aligned to 16 bytes
  std::int64_t x_stride = 0;    ///< elements from row to row, a multiple of 8
  void* y = nullptr;            ///< [m][n] of it too, aligned to 4 bytes
  std::int64_t y_stride = 0;    ///< even
  const float* bias = nullptr;  ///< [n] or null
  /// workspace_bytes() of zeros at first; a product leaves it so that the next on the same stream
  /// can use it. Products that may run at the same time need one each.
  void* workspace = nullptr;
};

/// Enough for every product on the device that is current.
std::size_t workspace_bytes();

/// Rows up to which a product reads the packed weight; more are faster through a dense copy
/// (dequantize.h) and a dense product.
std::int64_t most_rows(const Fragments& weight);

/// Sums are float32; a result is rounded once, and is the same every time. With more than 32 rows
/// on a device with wgmma the weight is rounded to `element` first. Returns what the launch
/// returned; cudaErrorInvalidValue for arguments that do not fit. Any thread.
cudaError_t multiply(const ProductArgs& args, cudaStream_t stream);

/// Rows of x and y and the weight that multiplies them, such as one expert's.
struct ProductSegment {
  const void* codes = nullptr;           ///< as in Fragments
  const std::uint32_t* words = nullptr;  ///< as in Fragments
  const float* bias = nullptr;           ///< [n] or null
  std::int64_t first = 0, rows = 0;      ///< rows [first, first + rows) of x and y
};

/// Rows a segment, on average, up to which multiply_grouped() is meant: it streams the packed
/// weights.
inline constexpr std::int64_t kMostGroupedRows = 32;

/// The products of many weights of one shape, element and table in one launch, or as few as hold
/// the segments. `all` says what they share; its codes, words and bias are not looked at, and m are
/// the rows of x and y. Rows of y that no segment has stay as they are; segments do not overlap.
/// Sums, results and errors as of multiply().
cudaError_t multiply_grouped(const ProductArgs& all, std::span<const ProductSegment> segments,
                             cudaStream_t stream);

/// Ways to compute it, for tests and benchmarks. Variants: 0 what would be chosen; of `stream` the
/// tiles of a warp, plus 10 for blocks that share tiles; of `wgmma`
/// 10000 * parts + 1000 * bands + rows.
enum class Way { automatic, stream, wgmma };
cudaError_t multiply_by(Way way, int variant, const ProductArgs& args, cudaStream_t stream);

}  // namespace graft::cuda
