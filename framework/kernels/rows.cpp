#include "kernels/rows.h"

#include "kernels/linear.h"

namespace graft::kernels {
namespace {

std::int64_t element_bytes(ElementType type) { return type == ElementType::f32 ? 4 : 2; }

/// Where element i of 32 lies.
std::int64_t place(ElementType type, std::int64_t i) {
  return type == ElementType::bf16 ? i % kLanes * 2 + i / kLanes : i;
}

std::int64_t whole_pairs(std::int64_t n) { return (n + 2 * kLanes - 1) / (2 * kLanes) * 2 * kLanes; }

template <class Element>
void put(const HeadCache& cache, std::int64_t position, const float* key, const float* value) {
  auto* keys = static_cast<Element*>(cache.keys) + position / kKeyBlock * kKeyBlock * cache.dim +
               place(cache.type, position % kKeyBlock);
  auto* values = static_cast<Element*>(cache.values) + position * value_stride(cache.dim);
  Element some_key[kKeyBlock], some_value[kKeyBlock];
  for (std::int64_t d = 0; d < cache.dim; d += kKeyBlock) {
    const std::int64_t count = cache.dim - d < kKeyBlock ? cache.dim - d : kKeyBlock;
    store_row_scalar(key + d, nullptr, count, cache.type, some_key);
    store_row_scalar(value + d, nullptr, count, cache.type, some_value);
    for (std::int64_t i = 0; i < count; ++i) {
      keys[(d + i) * kKeyBlock] = some_key[i];
      values[d + place(cache.type, i)] = some_value[i];
    }
  }
}

}  // namespace

std::int64_t value_stride(std::int64_t dim) { return whole_pairs(dim); }
std::int64_t dense_stride(std::int64_t k) { return whole_pairs(k); }

std::int64_t key_bytes(ElementType type, std::int64_t dim, std::int64_t capacity) {
  return whole_pairs(capacity) * dim * element_bytes(type);
}

std::int64_t value_bytes(ElementType type, std::int64_t dim, std::int64_t capacity) {
  return capacity * value_stride(dim) * element_bytes(type);
}

void remember(const HeadCache& cache, std::int64_t position, const float* key,
              const float* value) {
  if (cache.type == ElementType::f32) return put<float>(cache, position, key, value);
  put<std::uint16_t>(cache, position, key, value);
}

const RowOperations& row_operations(CpuLevel level, ElementType type) {
#if defined(__x86_64__)
  if (level == CpuLevel::avx512) return row_operations_avx512(type);
  if (level == CpuLevel::avx2) return row_operations_avx2(type);
#else
  (void)level;
#endif
  return row_operations_scalar(type);
}

}  // namespace graft::kernels
