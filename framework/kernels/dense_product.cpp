#include <algorithm>

#include "kernels/row_products.h"
#include "kernels/rows.h"
#include "kernels/scratch.h"

namespace graft::kernels {
namespace {

class DenseProduct final : public nn::RowProduct {
 public:
  DenseProduct(const void* weight, ElementType type, std::int64_t n, std::int64_t k,
               const float* bias)
      : operations_(row_operations(cpu_level(), type)),
        weight_(static_cast<const std::byte*>(weight)),
        type_(type),
        n_(n),
        k_(k),
        row_bytes_(k * (type == ElementType::f32 ? 4 : 2)),
        bias_(bias) {}

  std::int64_t in_features() const noexcept override { return k_; }
  std::int64_t out_features() const noexcept override { return n_; }
  std::int64_t most_rows() const noexcept override { return kDenseRows; }
  std::int64_t unit() const noexcept override { return kUnit; }
  std::int64_t unit_bytes() const noexcept override { return kUnit * row_bytes_; }

  std::int64_t prepared_bytes(std::int64_t m) const noexcept override {
    return kHead + round_up_64(m * dense_stride(k_) * 4);
  }

  std::int64_t begin(std::int64_t m, std::byte* prepared) const noexcept override {
    *reinterpret_cast<std::int64_t*>(prepared) = m;
    return m;
  }

  void prepare(const float* x, std::int64_t stride, std::int64_t part,
               std::byte* prepared) const noexcept override {
    operations_.arrange(x + part * stride, k_,
                        reinterpret_cast<float*>(prepared + kHead) + part * dense_stride(k_));
  }

  void compute(const std::byte* prepared, std::int64_t first, std::int64_t count, float* out,
               std::int64_t stride) const noexcept override {
    DenseArgs args;
    args.type = type_;
    args.weight = weight_ + first * row_bytes_;
    args.k = k_;
    args.count = count;
    args.m = *reinterpret_cast<const std::int64_t*>(prepared);
    args.x = reinterpret_cast<const float*>(prepared + kHead);
    args.out = out;
    args.out_stride = stride;
    operations_.dense(args);
    if (!bias_) return;
    for (std::int64_t r = 0; r < args.m; ++r)
      for (std::int64_t i = 0; i < count; ++i) out[r * stride + i] += bias_[first + i];
  }

 private:
  static constexpr std::int64_t kHead = 64, kUnit = 16;

  const RowOperations& operations_;
  const std::byte* weight_;
  ElementType type_;
  std::int64_t n_, k_, row_bytes_;
  const float* bias_;
};

}  // namespace

std::unique_ptr<nn::RowProduct> dense_product(const void* weight, ElementType type, std::int64_t n,
                                              std::int64_t k, const float* bias) {
  return std::make_unique<DenseProduct>(weight, type, n, k, bias);
}

}  // namespace graft::kernels
