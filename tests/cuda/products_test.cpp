#include <array>
#include <cmath>

#include "cuda/byte_product.h"
#include "on_device.h"
#include "sentences.h"

// Two roundings are allowed for, relative in the Euclidean norm: that of the result, and that of
// the weight (wgmma) or of the table's levels.

namespace graft::test {
namespace {

using namespace cuda;

const std::pair<std::int64_t, std::int64_t> kShapes[] = {{64, 128},    {200, 192},  {1024, 4096},
                                                         {4096, 1096}, {776, 2560}, {8, 8}};
constexpr std::int64_t kGroups[] = {32, 64, 128, 256, 1 << 20};

void for_each_weight(const std::function<void(const PackedWeight&, at::ScalarType)>& visit) {
  for (const auto kind : {CodeKind::int4, CodeKind::table4})
    for (const auto& [n, k] : kShapes)
      for (const auto group : kGroups)
        for (const auto dtype : {at::kHalf, at::kBFloat16})
          visit(random_weight(kind, n, k, group, dtype), dtype);
}

std::string name_of(const PackedWeight& w, at::ScalarType dtype) {
  const auto& s = w.shape;
  return std::string(s.kind == CodeKind::int4 ? "int4 " : "table ") + std::to_string(s.n) + "x" +
         std::to_string(s.k) + " groups of " + std::to_string(s.group) + " " + c10::toString(dtype);
}

}  // namespace

SENTENCE("every way of a product is near the product in float64, and writes all of it") {
  for_each_weight([](const PackedWeight& w, at::ScalarType dtype) {
    const auto dense = w.dense();
    for (const std::int64_t m : {1, 2, 7, 8, 9, 16, 21, 32, 33, 64, 100, 128, 200, 257}) {
      const auto x = at::randn({m, w.shape.k}, at::device(at::kCUDA)).to(dtype);
      const auto bias = m % 2 ? at::randn({w.shape.n}, at::device(at::kCUDA)) : at::Tensor();
      auto expected = at::mm(x.to(at::kDouble), dense.t());
      if (bias.defined()) expected = expected + bias.to(at::kDouble);
      for (const auto& v : kVariants) {
        const bool wgmma = v.way == Way::wgmma;
        if (m > v.most_rows || (wgmma && (w.shape.kind != CodeKind::int4 || !has_wgmma())))
          continue;
        auto y = at::full({m, w.shape.n}, NAN, x.options());
        multiply(w, x, y, v.way, v.number, bias);
        const double error = distance(y, expected),
                     most = 2 * (dtype == at::kHalf ? 0x1p-11 : 0x1p-9);
        expect(error < most, name_of(w, dtype) + " m " + std::to_string(m) + " by " + v.name +
                                 ": " + std::to_string(error) + " above " + std::to_string(most));
      }
    }
  });
}

SENTENCE("a product is the same every time") {
  for_each_weight([](const PackedWeight& w, at::ScalarType dtype) {
    for (const std::int64_t m : {1, 12, 40, 130}) {
      const auto x = at::randn({m, w.shape.k}, at::device(at::kCUDA)).to(dtype);
      auto first = at::full({m, w.shape.n}, NAN, x.options()), second = first.clone();
      multiply(w, x, first);
      multiply(w, x, second);
      expect(first.equal(second), name_of(w, dtype) + " m " + std::to_string(m));
    }
  });
}

SENTENCE("a row of up to eight has the same result alone and among others") {
  const auto w = random_weight(CodeKind::int4, 1024, 4096, 128);
  const auto x = at::randn({8, 4096}, at::device(at::kCUDA)).to(at::kBFloat16);
  auto all = at::empty({8, 1024}, x.options()), one = at::empty({1, 1024}, x.options());
  multiply(w, x, all);
  for (int row = 0; row < 8; ++row) {
    multiply(w, x.narrow(0, row, 1), one);
    expect(one.equal(all.narrow(0, row, 1)), "row " + std::to_string(row));
  }
}

SENTENCE("x and y may be columns of wider tensors") {
  const auto w = random_weight(CodeKind::int4, 256, 512, 64);
  const auto wide = at::randn({20, 1024}, at::device(at::kCUDA)).to(at::kBFloat16);
  for (const std::int64_t m : {4, 20}) {
    auto wide_y = at::zeros({m, 400}, wide.options());
    const auto x = wide.narrow(0, 0, m).narrow(1, 512, 512);
    auto y = wide_y.narrow(1, 100, 256);
    multiply(w, x, y);
    expect(distance(y, at::mm(x.to(at::kDouble), w.dense().t())) < 4e-3, "m " + std::to_string(m));
    expect(wide_y.narrow(1, 0, 100).eq(0).all().item<bool>() &&
               wide_y.narrow(1, 356, 44).eq(0).all().item<bool>(),
           "what is beside y stays as it was, m " + std::to_string(m));
  }
}

SENTENCE("dequantized weights are rounded once") {
  for_each_weight([](const PackedWeight& w, at::ScalarType dtype) {
    const auto [n, k] = std::pair(w.shape.n, w.shape.k);
    const auto wide = w.dense().to(at::kFloat);  // a product in float32 is one rounding
    for (const auto& [type, as] : {std::pair{DenseType::f16, at::kHalf},
                                   {DenseType::bf16, at::kBFloat16},
                                   {DenseType::f32, at::kFloat}}) {
      auto out = at::full({n, k}, NAN, at::device(at::kCUDA).dtype(as));
      const std::int64_t first = n > 64 ? 64 : 0;
      if (first > 0)
        require(dequantize(w.view(), 0, first, type, out.mutable_data_ptr(), stream()),
                "dequantize");
      require(dequantize(w.view(), first, n - first, type,
                         out.narrow(0, first, n - first).mutable_data_ptr(), stream()),
              "dequantize");
      expect(out.equal(wide.to(as)), name_of(w, dtype) + " to " + c10::toString(as));
    }
  });
}

SENTENCE("codes come back as they were packed") {
  for_each_weight([](const PackedWeight& w, at::ScalarType dtype) {
    const auto [n, k] = std::pair(w.shape.n, w.shape.k);
    const auto expected = w.plain_codes.view({n, k / 8, 8})
                              .bitwise_left_shift(at::arange(0, 32, 4, w.plain_codes.options()))
                              .sum(-1, false, at::kInt)
                              .t();
    auto found = at::empty({k / 8, n}, w.plain_codes.options());
    require(unpack_codes(w.shape, w.codes.const_data_ptr(),
                         reinterpret_cast<std::uint32_t*>(found.mutable_data_ptr<int>()), stream()),
            "unpack");
    expect(found.equal(expected), name_of(w, dtype));
  });
}

SENTENCE("each segment of a grouped product is near its product in float64, every time the same") {
  for (const auto kind : {CodeKind::int4, CodeKind::table4})
    for (const auto dtype : {at::kHalf, at::kBFloat16})
      for (const auto& rows : std::vector<std::vector<std::int64_t>>{
               {1, 1, 1, 1, 1, 1, 1, 1}, {3, 8, 0, 5}, {16, 1, 9}, {32, 1, 50}}) {
        std::vector<PackedWeight> weights;
        std::vector<at::Tensor> biases;
        for (std::size_t i = 0; i < rows.size(); ++i) {
          weights.push_back(random_weight(kind, 768, 2048, 64, dtype));
          biases.push_back(at::randn({768}, at::device(at::kCUDA)));
        }
        std::vector<ProductSegment> segments;
        std::int64_t m = 0;
        for (std::size_t i = 0; i < rows.size(); ++i) {
          segments.push_back({weights[i].codes.const_data_ptr(), words_of(weights[i].words),
                              i % 2 ? biases[i].const_data_ptr<float>() : nullptr, m, rows[i]});
          m += rows[i];
        }
        const auto x = at::randn({m, 2048}, at::device(at::kCUDA)).to(dtype);
        auto y = at::full({m, 768}, NAN, x.options()), again = y.clone();
        multiply_grouped(weights.front(), segments, x, y);
        multiply_grouped(weights.front(), segments, x, again);
        expect(y.equal(again), "twice the same, " + name_of(weights.front(), dtype));
        for (std::size_t i = 0; i < rows.size(); ++i) {
          if (rows[i] == 0) continue;
          const auto part = x.narrow(0, segments[i].first, rows[i]).to(at::kDouble);
          auto expected = at::mm(part, weights[i].dense().t());
          if (i % 2) expected = expected + biases[i].to(at::kDouble);
          const double error = distance(y.narrow(0, segments[i].first, rows[i]), expected);
          expect(error < 2 * (dtype == at::kHalf ? 0x1p-11 : 0x1p-9),
                 name_of(weights[i], dtype) + " segment " + std::to_string(i) + ": " +
                     std::to_string(error));
        }
      }
}

SENTENCE("8-bit weights multiply near float64 and are dequantized with one rounding") {
  const auto gpu = at::device(at::kCUDA);
  for (const auto& [n, k, group] : std::vector<std::array<std::int64_t, 3>>{
           {1024, 4096, 128}, {777, 1104, 48}, {64, 2048, 2048}, {1, 16, 16}})
    for (const auto dtype : {at::kHalf, at::kBFloat16}) {
      const auto groups = (k + group - 1) / group;
      const auto codes = at::randint(0, 256, {n, k}, gpu.dtype(at::kByte));
      const auto zeros = at::randint(0, 257, {n, groups}, gpu.dtype(at::kInt));
      const auto scales = (at::rand({n, groups}, gpu) * 0.01 + 0.001).to(dtype);
      const auto words = scales.view(at::kShort).to(at::kInt).bitwise_and(0xFFFF) +
                         zeros.bitwise_left_shift(16);
      const auto of_input = at::arange(k, gpu.dtype(at::kLong)).floor_divide(group);
      const auto dense =
          (codes.to(at::kFloat) - zeros.index_select(1, of_input).to(at::kFloat)) *
          scales.to(at::kFloat).index_select(1, of_input);
      ByteProductArgs args;
      args.weight = {n, k, group, codes.const_data_ptr<std::uint8_t>(), words_of(words),
                     dtype == at::kHalf ? Element::f16 : Element::bf16};
      args.x_stride = k;
      args.y_stride = n;
      const std::string name = std::to_string(n) + "x" + std::to_string(k) + " " +
                               c10::toString(dtype);
      for (const std::int64_t m : {1, 2, 4, 7, 16, 19}) {
        const auto x = at::randn({m, k}, gpu).to(dtype);
        auto y = at::full({m, n}, NAN, x.options());
        args.m = m;
        args.x = x.const_data_ptr();
        args.y = y.mutable_data_ptr();
        require(multiply_bytes(args, stream()), "a product of bytes");
        const double error =
            distance(y, at::mm(x.to(at::kDouble), dense.to(at::kDouble).t()));
        // Half a unit in the last place.
        expect(error < 1.01 * (dtype == at::kHalf ? 0x1p-11 : 0x1p-8),
               name + " m " + std::to_string(m) + ": " + std::to_string(error));
      }
      auto out = at::full({n, k}, NAN, gpu.dtype(dtype));
      require(dequantize_bytes(args.weight, 0, n,
                               dtype == at::kHalf ? DenseType::f16 : DenseType::bf16,
                               out.mutable_data_ptr(), stream()),
              "dequantize");
      expect(out.equal(dense.to(dtype)), name + " dequantized");
    }
}

SENTENCE("what does not fit is refused") {
  const auto w = random_weight(CodeKind::int4, 64, 128, 64);
  const auto x = at::zeros({1, 128}, at::device(at::kCUDA).dtype(at::kBFloat16));
  ProductArgs args;
  args.weight = w.view();
  args.m = 1;
  args.x = x.const_data_ptr();
  args.x_stride = 128;
  args.y = x.mutable_data_ptr();
  args.y_stride = 64;
  expect(multiply(args, stream()) == cudaErrorInvalidValue, "no workspace");
  args.workspace = workspace().mutable_data_ptr();
  args.x_stride = 127;
  expect(multiply(args, stream()) == cudaErrorInvalidValue, "x_stride 127");
  args.x_stride = 128;
  args.y_stride = 65;
  expect(multiply(args, stream()) == cudaErrorInvalidValue, "y_stride 65");
  args.y_stride = 64;
  args.m = -1;
  expect(multiply(args, stream()) == cudaErrorInvalidValue, "-1 rows");
  args.m = 0;
  expect(multiply(args, stream()) == cudaSuccess, "no row is no work");
  expect(dequantize(w.view(), 8, 8, DenseType::f32, x.mutable_data_ptr(), stream()) ==
             cudaErrorInvalidValue,
         "dequantize from output 8 on");
}

}  // namespace graft::test
