// The CUDA kernels on this machine's GPU: `check` compares them with float64, `tune` times every way
// of a product, `table` prints the sweep that docs/performance.md has.

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "cuda/dequantize.h"
#include "cuda/pack.h"
#include "cuda/product.h"

namespace {

using namespace graft::cuda;

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

struct Weight {
  FragmentShape shape;
  at::Tensor codes, words, table;  // on the device
  at::Tensor zeros_of_group, scales_of_group, dense_codes;
  Element element = Element::bf16;

  Fragments view() const {
    Fragments out;
    out.shape = shape;
    out.codes = codes.const_data_ptr();
    out.words = reinterpret_cast<const std::uint32_t*>(words.const_data_ptr<int>());
    out.table = table.defined() ? table.const_data_ptr<float>() : nullptr;
    out.element = element;
    return out;
  }
  /// [n, k] float64.
  at::Tensor dense() const {
    const auto group = at::arange(shape.k, dense_codes.options().dtype(at::kLong))
                           .bitwise_right_shift(std::min(shape.group_shift, 30));
    const auto scale = scales_of_group.index_select(1, group);
    if (shape.kind == CodeKind::table4)
      return table.to(at::kDouble).index({dense_codes.to(at::kLong)}) * scale;
    return (dense_codes.to(at::kDouble) - zeros_of_group.index_select(1, group)) * scale;
  }
};

Weight make_weight(CodeKind kind, std::int64_t n, std::int64_t k, std::int64_t group,
                   at::ScalarType dtype = at::kBFloat16) {
  const auto gpu = at::TensorOptions(at::kCUDA);
  Weight w;
  w.shape = fragment_shape(kind, n, k, group);
  w.element = dtype == at::kHalf ? Element::f16 : Element::bf16;
  const auto& s = w.shape;
  w.dense_codes = at::randint(0, 16, {n, k}, gpu.dtype(at::kInt));
  const auto shifts = at::arange(0, 32, 4, gpu.dtype(at::kInt));
  const auto packed = w.dense_codes.view({n, k / 8, 8})
                          .bitwise_left_shift(shifts)
                          .sum(-1, false, at::kInt)
                          .t()
                          .contiguous();
  w.codes = at::empty({s.code_bytes / 4}, gpu.dtype(at::kInt));
  require(pack_codes(s, reinterpret_cast<const std::uint32_t*>(packed.const_data_ptr<int>()),
                     w.codes.mutable_data_ptr(), stream()),
          "pack");
  auto scales = at::rand({n, s.groups}, gpu) * 0.01 + 0.001;
  auto zeros = at::randint(0, 17, {n, s.groups}, gpu.dtype(at::kInt));
  at::Tensor words;
  if (kind == CodeKind::int4) {
    const auto half = scales.to(dtype);
    
    words = half.view(at::kShort).to(at::kInt).bitwise_and(0xFFFF) + zeros.bitwise_left_shift(16);
    scales = half.to(at::kFloat);
  } else {
    words = scales.view(at::kInt);
    w.table = at::linspace(-1, 1, 16, gpu);
    w.table[7] = 0;
  }
  auto wide = at::zeros({s.bands * kBandOutputs, s.groups}, gpu.dtype(at::kInt));
  wide.narrow(0, 0, n).copy_(words);
  w.words = wide.view({s.bands, kBandOutputs, s.groups}).transpose(1, 2).contiguous();
  w.scales_of_group = scales.to(at::kDouble);
  w.zeros_of_group = zeros.to(at::kDouble);
  return w;
}

at::Tensor workspace() {
  static const auto memory =
      at::zeros({static_cast<std::int64_t>(workspace_bytes())}, at::device(at::kCUDA).dtype(at::kByte));
  return memory;
}

void run(const Weight& w, const at::Tensor& x, at::Tensor& y, Way way, int variant,
         const at::Tensor& bias = {}) {
  ProductArgs args;
  args.weight = w.view();
  args.m = x.size(0);
  args.x = x.const_data_ptr();
  args.x_stride = x.stride(0);
  args.y = y.mutable_data_ptr();
  args.y_stride = y.stride(0);
  args.bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  args.workspace = workspace().mutable_data_ptr();
  require(multiply_by(way, variant, args, stream()), "multiply");
}

double relative(const at::Tensor& found, const at::Tensor& expected) {
  return ((found.to(at::kDouble) - expected).norm() / expected.norm()).item<double>();
}

int g_failures = 0;

void expect(bool good, const std::string& what) {
  if (!good) {
    ++g_failures;
    if (g_failures < 40) std::printf("FAILED %s\n", what.c_str());
  }
}

struct Variant {
  Way way;
  int number;
  const char* name;
  int most_rows;
};
const Variant kVariants[] = {
    {Way::stream, 1, "stream 1", 8},       {Way::stream, 2, "stream 2", 64},
    {Way::stream, 4, "stream 4", 16},      {Way::wgmma, 4032, "wgmma 32", 32},
    {Way::wgmma, 2064, "wgmma 64", 128},   {Way::wgmma, 2128, "wgmma 128", 1 << 30},
    {Way::wgmma, 2256, "wgmma 256", 1 << 30}, {Way::automatic, 0, "auto", 1 << 30},
};

void check() {
  int count = 0;
  double worst = 0;
  for (const auto kind : {CodeKind::int4, CodeKind::table4})
    for (const auto& [n, k] : {std::pair<std::int64_t, std::int64_t>{64, 128}, {200, 192},
                               {1024, 4096}, {4096, 1096}, {776, 2560}})
      for (const std::int64_t group : {32, 64, 128, 1 << 20}) for (const auto dtype : {at::kHalf, at::kBFloat16}) {
        const auto w = make_weight(kind, n, k, group, dtype);
        const auto dense = w.dense();
        for (const auto type : {DenseType::f16, DenseType::bf16, DenseType::f32}) {
          const auto dense_type = type == DenseType::f16   ? at::kHalf
                             : type == DenseType::bf16 ? at::kBFloat16
                                                       : at::kFloat;
          auto out = at::full({n, k}, NAN, at::device(at::kCUDA).dtype(dense_type));
          const std::int64_t first = n > 64 ? 64 : 0;
          require(dequantize(w.view(), first, n - first, type, out.narrow(0, first, n - first).mutable_data_ptr(), stream()), "dequantize");
          if (first) require(dequantize(w.view(), 0, first, type, out.mutable_data_ptr(), stream()), "dequantize");
          expect(out.equal(dense.to(at::kFloat).to(dense_type)) || relative(out, dense.to(at::kFloat).to(dense_type).to(at::kDouble)) < 1e-7, "dequantize " + std::to_string(n) + "x" + std::to_string(k));
        }
        auto back = at::empty({k / 8, n}, at::device(at::kCUDA).dtype(at::kInt));
        require(unpack_codes(w.shape, w.codes.const_data_ptr(), reinterpret_cast<std::uint32_t*>(back.mutable_data_ptr<int>()), stream()), "unpack");
          for (const std::int64_t m : {1, 2, 7, 8, 9, 16, 21, 32, 33, 64, 100, 128, 200, 257}) {
            const auto x = at::randn({m, k}, at::device(at::kCUDA)).to(dtype);
            const auto bias = m % 2 ? at::randn({n}, at::device(at::kCUDA)) : at::Tensor();
            auto expected = at::mm(x.to(at::kDouble), dense.t());
            if (bias.defined()) expected = expected + bias.to(at::kDouble);
            for (const auto& v : kVariants) {
              if (v.way == Way::wgmma && kind != CodeKind::int4) continue;
              if (m > std::min(v.most_rows, 300)) continue;
              auto y = at::full({m, n}, NAN, x.options());
              run(w, x, y, v.way, v.number, bias);
              const double error = relative(y, expected);
              ++count;
              if (std::isfinite(error)) worst = std::max(worst, error);
              expect(error < 4e-3, std::string(v.name) + " kind " + std::to_string(int(kind)) + " n " + std::to_string(n) + " k " + std::to_string(k) + " g " + std::to_string(group) + " m " + std::to_string(m) + (dtype == at::kHalf ? " f16" : " bf16") + " error " + std::to_string(error));
              auto again = at::full({m, n}, NAN, x.options());
              run(w, x, again, v.way, v.number, bias);
              expect(again.equal(y), std::string("not the same twice: ") + v.name);
            }
          }
        if (false) std::printf("%dx%ld k %ld g %ld ok so far: %d products, worst %.2e\n", int(kind), n, k, group, count, worst);
        std::fflush(stdout);
      }
  std::printf("check: %d products, worst %.2e, %d failures\n", count, worst, g_failures);
}

/// Microseconds of one call; `call(i)` uses the i-th copy of the data.
double time_us(int copies, const std::function<void(int)>& call) {
  for (int i = 0; i < 2; ++i) call(i % copies);
  require(cudaStreamSynchronize(stream()), "warm-up");
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  const int calls = std::max(copies, 8);
  require(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeRelaxed), "capture");
  for (int i = 0; i < calls; ++i) call(i % copies);
  require(cudaStreamEndCapture(stream(), &graph), "end of capture");
  require(cudaGraphInstantiate(&exec, graph, 0), "graph");
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  require(cudaGraphLaunch(exec, stream()), "graph");
  std::vector<float> times;
  for (int round = 0; round < 7; ++round) {
    cudaEventRecord(begin, stream());
    cudaGraphLaunch(exec, stream());
    cudaEventRecord(end, stream());
    require(cudaEventSynchronize(end), "graph");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    times.push_back(ms);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  std::nth_element(times.begin(), times.begin() + 3, times.end());
  return 1e3 * times[3] / calls;
}

double copy_rate() {
  const auto from = at::rand({1LL << 30}, at::device(at::kCUDA));
  auto to = at::empty_like(from);
  double best = 0;
  for (int round = 0; round < 6; ++round) {
    cudaEvent_t begin, end;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    cudaEventRecord(begin, stream());
    to.copy_(from);
    cudaEventRecord(end, stream());
    require(cudaEventSynchronize(end), "copy");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    best = std::max(best, 2.0 * static_cast<double>(from.nbytes()) / ms * 1e-9);
  }
  return best;  // TB/s
}

void tune(const std::vector<std::pair<std::int64_t, std::int64_t>>& shapes,
          const std::vector<std::int64_t>& rows, CodeKind kind, std::int64_t group) {
  const double rate = copy_rate();
  std::printf("copy %.3f TB/s\n", rate);
  for (const auto& [n, k] : shapes) {
    std::vector<Weight> weights;
    std::vector<at::Tensor> dense;
    const double bytes = static_cast<double>(n * k) / 2;
    const int copies = std::max(2, static_cast<int>(400e6 / bytes));
    for (int i = 0; i < copies; ++i) {
      weights.push_back(make_weight(kind, n, k, group));
      weights.back().dense_codes.reset();
    }
    for (int i = 0; i < std::max(2, copies / 3); ++i)
      dense.push_back(at::randn({n, k}, at::device(at::kCUDA).dtype(at::kBFloat16)));
    for (const auto m : rows) {
      const auto x = at::randn({m, k}, at::device(at::kCUDA)).to(at::kBFloat16);
      auto y = at::empty({m, n}, x.options());
      const double bf16 = time_us(static_cast<int>(dense.size()), [&](int i) { at::mm_out(y, x, dense[static_cast<std::size_t>(i)].t()); });
      std::printf("%ldx%ld m %4ld bf16 %7.2f us |", n, k, m, bf16);
      for (const auto& v : kVariants) {
        if (v.way == Way::wgmma && kind != CodeKind::int4) continue;
        if (v.way == Way::automatic && kind != CodeKind::int4 && m > 64) continue;
        if (m > v.most_rows) continue;
        if (v.way == Way::wgmma && (m > 4 * (v.number % 1000) && v.number % 1000 < 128)) continue;
        if (v.way == Way::wgmma && m * 4 < v.number % 1000) continue;
        const double us = time_us(copies, [&](int i) { run(weights[static_cast<std::size_t>(i)], x, y, v.way, v.number); });
        const double moved = static_cast<double>(weights[0].codes.nbytes() + weights[0].words.nbytes() + x.nbytes() + y.nbytes());
        std::printf(" %s %.2f us %.2fx %.0f%%", v.name, us, bf16 / us, 100 * moved / us * 1e-6 / rate);
      }
      std::printf("\n");
      std::fflush(stdout);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "check";
  at::manual_seed(1);
  const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
  if (mode == "check") check();
  if (mode == "tune") {
    tune({{8192, 28672}, {28672, 8192}}, {1, 16, 32, 64, 128, 256, 512, 1024, 2048}, CodeKind::int4, 128);
    tune({{4096, 4096}}, {1, 8, 16, 32, 64, 128, 512}, CodeKind::int4, 128);
    tune({{8192, 28672}}, {1, 16}, CodeKind::table4, 64);
  }
  if (mode == "profile") {  // n k m way variant
    const auto number = [&](int i) { return std::stol(argv[i]); };
    const auto w = make_weight(CodeKind::int4, number(2), number(3), 128);
    const auto x = at::randn({number(4), number(3)}, at::device(at::kCUDA)).to(at::kBFloat16);
    auto y = at::empty({number(4), number(2)}, x.options());
    for (int i = 0; i < 3; ++i) run(w, x, y, static_cast<Way>(number(5)), static_cast<int>(number(6)));
    require(cudaStreamSynchronize(stream()), "run");
  }
  return g_failures != 0;
}
