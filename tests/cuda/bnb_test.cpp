#include <cstddef>

#include "graft/pool.h"
#include "kernels/four_bit_cuda.h"
#include "kernels/int8_cuda.h"
#include "kernels/row_int8.h"
#include "on_device.h"
#include "sentences.h"

namespace graft::test {
namespace {

using bnb::QuantType;
using cuda::DenseType;

constexpr std::pair<DenseType, at::ScalarType> kTypes[] = {
    {DenseType::f16, at::kHalf}, {DenseType::bf16, at::kBFloat16}, {DenseType::f32, at::kFloat}};

/// What the CPU makes of float32 values.
std::pair<at::Tensor, at::Tensor> on_cpu(const at::Tensor& x, std::int64_t blocksize,
                                         QuantType type) {
  const std::int64_t count = x.numel(), blocks = (count + blocksize - 1) / blocksize;
  const auto wide = x.cpu().to(at::kFloat).contiguous();
  auto packed = at::zeros({(count + 1) / 2}, at::kByte), absmax = at::zeros({blocks});
  bnb::quantize_blocks(wide.const_data_ptr<float>(), count, blocksize, type, 0, blocks,
                       packed.mutable_data_ptr<std::uint8_t>(), absmax.mutable_data_ptr<float>());
  return {packed, absmax};
}

}  // namespace

SENTENCE("4-bit codes and absmax are those of the CPU, bit for bit") {
  for (const auto quant : {QuantType::nf4, QuantType::fp4})
    for (const auto& [type, as] : kTypes)
      for (const std::int64_t blocksize : {32, 64, 128, 256, 512, 4096, 80})
        for (const std::int64_t count : {4096 * 64, 8192 * 5 + 64, 1000, 33, 1}) {
          auto x = at::randn({count}, at::device(at::kCUDA));
          x.mul_(at::pow(10.0, at::randint(-6, 3, {count}, x.options())));
          if (count > 5000) x.narrow(0, 1024, 512).zero_();
          x = x.to(as);
          auto packed = at::zeros({(count + 1) / 2}, x.options().dtype(at::kByte));
          auto absmax =
              at::full({(count + blocksize - 1) / blocksize}, NAN, x.options().dtype(at::kFloat));
          auto bad = at::zeros({1}, x.options().dtype(at::kInt));
          require(bnb::quantize_blocks_cuda(x.const_data_ptr(), type, count, blocksize, quant,
                                            packed.mutable_data_ptr<std::uint8_t>(),
                                            absmax.mutable_data_ptr<float>(),
                                            bad.mutable_data_ptr<int>(), stream()),
                  "quantize");
          const auto [codes, most] = on_cpu(x, blocksize, quant);
          expect(packed.cpu().equal(codes) && absmax.cpu().equal(most) && !bad.item<int>(),
                 std::to_string(count) + " in blocks of " + std::to_string(blocksize) + " from " +
                     c10::toString(as) + (quant == QuantType::nf4 ? " nf4" : " fp4"));
        }
}

SENTENCE("NaN and infinity are reported") {
  for (const float value : {NAN, INFINITY, -INFINITY})
    for (const std::int64_t at : {0, 777, 999}) {
      auto x = at::zeros({1000}, at::device(at::kCUDA));
      x[at] = value;
      auto packed = at::zeros({500}, x.options().dtype(at::kByte));
      auto absmax = at::zeros({16}, x.options());
      auto bad = at::zeros({1}, x.options().dtype(at::kInt));
      require(bnb::quantize_blocks_cuda(x.const_data_ptr(), DenseType::f32, 1000, 64,
                                        QuantType::nf4, packed.mutable_data_ptr<std::uint8_t>(),
                                        absmax.mutable_data_ptr<float>(),
                                        bad.mutable_data_ptr<int>(), stream()),
              "quantize");
      expect(bad.item<int>() == 1, std::to_string(value) + " at " + std::to_string(at));
    }
}

SENTENCE("4-bit blocks are dequantized as on the CPU, rounded once") {
  for (const auto quant : {QuantType::nf4, QuantType::fp4})
    for (const auto& [type, as] : kTypes)
      for (const std::int64_t blocksize : {64, 4096})
        for (const std::int64_t count : {4096 * 16, 1000, 33}) {
          const auto x = at::randn({count});
          const auto [codes, most] = on_cpu(x, blocksize, quant);
          const auto& levels = bnb::code_table(quant);
          auto expected = at::empty({count});
          bnb::dequantize_blocks_scalar(codes.const_data_ptr<std::uint8_t>(), levels.data(),
                                        most.const_data_ptr<float>(), blocksize, 0, count,
                                        expected.mutable_data_ptr<float>());
          const auto table = at::tensor(c10::ArrayRef<float>(levels.data(), 16)).cuda();
          const auto packed = codes.cuda(), absmax = most.cuda();
          auto out = at::full({count}, NAN, at::device(at::kCUDA).dtype(as));
          require(bnb::dequantize_blocks_cuda(packed.const_data_ptr<std::uint8_t>(),
                                              table.const_data_ptr<float>(),
                                              absmax.const_data_ptr<float>(), blocksize, count,
                                              type, out.mutable_data_ptr(), stream()),
                  "dequantize");
          expect(out.cpu().equal(expected.to(as)),
                 std::to_string(count) + " to " + c10::toString(as));
        }
}

SENTENCE("doubly quantized absmax is that of the CPU") {
  const std::int64_t count = 5000, blocks = (count + 255) / 256;
  const auto codes = at::randint(0, 256, {count}, at::kByte), nested = at::rand({blocks});
  const auto& levels = bnb::dynamic_map();
  auto expected = at::empty({count}), found = at::empty({count}, at::device(at::kCUDA));
  bnb::dequantize_nested(codes.const_data_ptr<std::uint8_t>(), count, levels.data(),
                         nested.const_data_ptr<float>(), 256, 0.037F,
                         expected.mutable_data_ptr<float>());
  const auto map = at::tensor(c10::ArrayRef<float>(levels.data(), 256)).cuda();
  const auto device_codes = codes.cuda(), device_nested = nested.cuda();
  require(bnb::dequantize_nested_cuda(device_codes.const_data_ptr<std::uint8_t>(), count,
                                      map.const_data_ptr<float>(),
                                      device_nested.const_data_ptr<float>(), 256, 0.037F,
                                      found.mutable_data_ptr<float>(), stream()),
          "nested");
  expect(found.cpu().equal(expected), "5000 codes");
}

SENTENCE("LLM.int8 gives what the CPU gives") {
  for (const auto& [type, as] : kTypes)
    for (const auto& [n, k] :
         {std::pair<std::int64_t, std::int64_t>{64, 64}, {130, 1040}, {512, 4096}})
      for (const std::int64_t m : {1, 7, 64, 100})
        for (const float threshold : {6.0F, 0.0F}) {
          auto x = at::randn({m, k});
          x.select(1, 3).mul_(10);
          x.select(1, k - 1).fill_(7);
          x = x.to(as);
          const auto weight = at::randint(-127, 128, {n, k}, at::kChar);
          const auto scales = at::rand({n}) + 0.1, bias = at::randn({n});

          const auto shape = kernels::panel_shape(kernels::PanelKind::int8, n, k, k);
          auto codes = at::empty({shape.code_bytes}, at::kByte);
          const std::pair source{weight.const_data_ptr<std::int8_t>(), shape};
          kernels::pack_panels(
              shape,
              {[](const void* self, std::int64_t panel, std::int64_t first, std::int64_t rows,
                  std::uint8_t* to) {
                 const auto& [data, of] = *static_cast<const decltype(source)*>(self);
                 for (std::int64_t i = 0; i < rows; ++i)
                   for (std::int64_t j = 0; j < 16 && panel * 16 + j < of.n; ++j)
                     to[i * 16 + j] =
                         static_cast<std::uint8_t>(data[(panel * 16 + j) * of.k + first + i] + 128);
               },
               &source},
              0, shape.panels, codes.mutable_data_ptr<std::uint8_t>());
          kernels::RowInt8Args cpu;
          cpu.shape = &shape;
          cpu.codes = codes.const_data_ptr<std::uint8_t>();
          cpu.scales = scales.const_data_ptr<float>();
          cpu.threshold = threshold;
          cpu.m = m;
          cpu.x = x.const_data_ptr();
          cpu.x_type = cpu.y_type = as == at::kHalf       ? kernels::ElementType::f16
                                    : as == at::kBFloat16 ? kernels::ElementType::bf16
                                                          : kernels::ElementType::f32;
          cpu.x_stride = k;
          auto expected = at::empty({m, n}, as);
          cpu.y = expected.mutable_data_ptr();
          cpu.y_stride = n;
          cpu.bias = bias.const_data_ptr<float>();
          graft_pool serial{};  // without staged jobs
          serial.size = offsetof(graft_pool, open_staged);
          serial.threads = []() noexcept { return 1; };
          serial.run = [](std::int64_t chunks, void (*run)(void*, std::int64_t) noexcept,
                          void* context) noexcept {
            for (std::int64_t i = 0; i < chunks; ++i) run(context, i);
          };
          kernels::multiply_rows_int8_at(kernels::CpuLevel::scalar, cpu, serial);

          bnb::RowInt8Cuda args;
          const auto dx = x.cuda(), dw = weight.cuda(), ds = scales.cuda(), db = bias.cuda();
          auto y = at::full({m, n}, NAN, dx.options());
          auto memory = at::empty({static_cast<std::int64_t>(bnb::row_int8_workspace(m, k))},
                                  dx.options().dtype(at::kByte));
          args.weight = dw.const_data_ptr<std::int8_t>();
          args.scales = ds.const_data_ptr<float>();
          args.threshold = threshold;
          args.m = m;
          args.n = n;
          args.k = k;
          args.type = type;
          args.x = dx.const_data_ptr();
          args.y = y.mutable_data_ptr();
          args.bias = db.const_data_ptr<float>();
          args.workspace = memory.mutable_data_ptr();
          require(bnb::multiply_rows_int8_cuda(args, stream()), "int8");
          expect(y.cpu().equal(expected),
                 std::to_string(n) + "x" + std::to_string(k) + " m " + std::to_string(m) +
                     " threshold " + std::to_string(threshold) + " " + c10::toString(as) +
                     ", furthest " +
                     std::to_string((y.cpu().to(at::kFloat) - expected.to(at::kFloat))
                                        .abs()
                                        .max()
                                        .item<float>()));
        }
}

}  // namespace graft::test
