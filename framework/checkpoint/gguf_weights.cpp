#include "checkpoint/gguf_weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "graft/error.h"

namespace graft {
namespace {

/// Values between the blocks and the result; whole blocks of every format.
constexpr std::int64_t kPiece = 2048;

struct Shape {
  std::int64_t rows, columns;
};

/// One-dimensional tensors whose elements change places are columns; others are one row.
Shape shape_of(const GgufSource& source) {
  const auto& shape = source.tensor->shape;
  if (shape.size() == 1 && source.interleaved_heads) return {shape[0], 1};
  std::int64_t rows = 1;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return {rows, shape.back()};
}

/// The row of the file that is row `row` of the folder.
std::int64_t row_in_file(std::int64_t row, std::int64_t rows, std::int64_t heads) {
  if (heads == 0) return row;
  const std::int64_t size = rows / heads, half = size / 2;
  const std::int64_t head = row / size, within = row % size;
  return head * size + within % half * 2 + within / half;
}

/// Stores `count` values; false when one of them is not finite as `dtype`.
bool store(const float* values, std::int64_t count, Dtype dtype, std::byte* out) noexcept {
  bool finite = true;
  const auto narrow = [&](std::uint16_t infinity, auto convert) {
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint16_t bits = convert(values[i]);
      finite &= (bits & infinity) != infinity;
      std::memcpy(out + 2 * i, &bits, 2);
    }
  };
  if (dtype == Dtype::BF16) {
    narrow(0x7F80, bfloat16_of_float);
  } else if (dtype == Dtype::F16) {
    narrow(0x7C00, half_of_float);
  } else {
    for (std::int64_t i = 0; i < count; ++i) finite &= std::isfinite(values[i]);
    std::memcpy(out, values, static_cast<std::size_t>(count) * sizeof(float));
  }
  return finite;
}

}  // namespace

void convert_gguf_weights(const GgufSource& source, const std::byte* blocks, Dtype dtype,
                          std::byte* out, const graft_pool* threads) {
  const BlockFormat& format = *source.tensor->format;
  const Shape shape = shape_of(source);
  const std::string place = "tensor " + quote(source.tensor->name);
  if (shape.columns % format.elements != 0)
    throw Error(ErrorKind::model, "a vector in blocks cannot be put in order")
        .at(place)
        .found(std::string(format.name));
  const std::int64_t row_bytes = shape.columns / format.elements * format.bytes;
  const auto width = static_cast<std::int64_t>(size_of(dtype));
  constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  std::atomic<std::int64_t> wrong{kNone};  // start of the first piece with a value not finite

  // Chunks of about 256 KB of values; a chunk is whole rows, or one piece after the other of one.
  const std::int64_t rows_each = std::max<std::int64_t>(1, 65536 / shape.columns);
  const auto convert_rows = [&](std::int64_t chunk) {
    float values[kPiece];
    const std::int64_t end = std::min(shape.rows, (chunk + 1) * rows_each);
    for (std::int64_t row = chunk * rows_each; row < end; ++row) {
      const std::byte* from =
          blocks + row_in_file(row, shape.rows, source.interleaved_heads) * row_bytes;
      for (std::int64_t begin = 0; begin < shape.columns; begin += kPiece) {
        const std::int64_t count = std::min(kPiece, shape.columns - begin);
        const auto in_piece = static_cast<std::uint64_t>(count / format.elements);
        format.dequantize(from, in_piece, values);
        from += in_piece * format.bytes;
        const std::int64_t at = row * shape.columns + begin;
        if (!store(values, count, dtype, out + at * width)) {
          std::int64_t seen = wrong.load();
          while (at < seen && !wrong.compare_exchange_weak(seen, at)) {
          }
        }
      }
    }
  };
  const std::int64_t chunks = (shape.rows + rows_each - 1) / rows_each;
  if (threads) {
    for_each_chunk(*threads, chunks, convert_rows);
  } else {
    for (std::int64_t i = 0; i < chunks; ++i) convert_rows(i);
  }
  if (wrong.load() != kNone)
    throw Error(ErrorKind::model,
                "a weight is not finite or too large for " + std::string(name_of(dtype)))
        .at(place)
        .found("one between element " + std::to_string(wrong.load()) + " and " +
               std::to_string(wrong.load() + kPiece));
}

}  // namespace graft
