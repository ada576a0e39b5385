// The CUDA kernels against LibTorch on this machine's GPU, in the same run, interleaved:
//   table       products of the layers of Llama 3 8B and 70B, and quantizing
//   ways        every way of a product, for choosing between them
//   ways N K M...   of these products alone
//   profile N K M WAY VARIANT   one product a few times, for a profiler
// Weights rotate over more memory than the cache holds; calls are replayed as a graph, so that a
// launch costs what it costs in a decode loop.

#include <c10/cuda/CUDAGuard.h>

#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "../../tests/cuda/on_device.h"
#include "kernels/four_bit_cuda.h"

namespace {

using namespace graft;
using namespace graft::cuda;
using namespace graft::test;

/// Calls that are replayed together.
class Contender {
 public:
  /// `call(i)` uses the i-th copy of the data.
  Contender(int copies, const std::function<void(int)>& call) : calls_(std::max(copies, 8)) {
    for (int i = 0; i < 2; ++i) call(i % copies);
    require(cudaStreamSynchronize(stream()), "warm-up");
    cudaGraph_t graph;
    require(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeRelaxed), "capture");
    for (int i = 0; i < calls_; ++i) call(i % copies);
    require(cudaStreamEndCapture(stream(), &graph), "end of capture");
    require(cudaGraphInstantiate(&graph_, graph, 0), "graph");
    require(cudaGraphDestroy(graph), "graph");
    require(cudaEventCreate(&begin_), "event");
    require(cudaEventCreate(&end_), "event");
    for (int i = 0; i < 3; ++i) run();
    times_.clear();
  }
  Contender(const Contender&) = delete;
  Contender& operator=(const Contender&) = delete;
  ~Contender() {
    cudaGraphExecDestroy(graph_);
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }

  void run() {
    require(cudaEventRecord(begin_, stream()), "event");
    require(cudaGraphLaunch(graph_, stream()), "graph");
    require(cudaEventRecord(end_, stream()), "event");
    require(cudaEventSynchronize(end_), "graph");
    float ms = 0;
    require(cudaEventElapsedTime(&ms, begin_, end_), "event");
    times_.push_back(1e3 * ms / calls_);
  }
  /// Microseconds of a call: the median of the rounds.
  double us() {
    std::sort(times_.begin(), times_.end());
    return times_[times_.size() / 2];
  }

 private:
  int calls_;
  cudaGraphExec_t graph_{};
  cudaEvent_t begin_{}, end_{};
  std::vector<double> times_;
};

void race(const std::vector<Contender*>& contenders, int rounds = 7) {
  for (int round = 0; round < rounds; ++round)
    for (auto* contender : contenders) contender->run();
}

/// Bytes read and written a second, in TB/s, of a copy of 4 GiB on the device.
double copy_rate() {
  const auto from = at::rand({1LL << 30}, at::device(at::kCUDA));
  auto to = at::empty_like(from);
  double best = 0;
  for (int round = 0; round < 7; ++round) {
    cudaEvent_t begin, end;
    require(cudaEventCreate(&begin), "event");
    require(cudaEventCreate(&end), "event");
    require(cudaEventRecord(begin, stream()), "event");
    to.copy_(from);
    require(cudaEventRecord(end, stream()), "event");
    require(cudaEventSynchronize(end), "copy");
    float ms = 0;
    require(cudaEventElapsedTime(&ms, begin, end), "event");
    best = std::max(best, 2.0 * static_cast<double>(from.nbytes()) / ms * 1e-9);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
  }
  return best;
}

std::vector<PackedWeight> copies_of(CodeKind kind, std::int64_t n, std::int64_t k,
                                    std::int64_t group) {
  const auto bytes = static_cast<double>(n * k) / 2;
  std::vector<PackedWeight> out(static_cast<std::size_t>(std::max(2.0, 300e6 / bytes)));
  for (auto& weight : out) {
    weight = random_weight(kind, n, k, group);
    weight.plain_codes.reset();
  }
  return out;
}

std::vector<at::Tensor> dense_copies(std::int64_t n, std::int64_t k) {
  std::vector<at::Tensor> out;
  const double bytes = 2.0 * static_cast<double>(n * k);
  for (double total = 0; total < 300e6 || out.size() < 2; total += bytes)
    out.push_back(at::randn({n, k}, at::device(at::kCUDA).dtype(at::kBFloat16)));
  return out;
}

/// LibTorch's own int4 product, with groups of 128.
struct TorchInt4 {
  at::Tensor weight, scales_and_zeros;
};
std::vector<TorchInt4> torch_copies(std::int64_t n, std::int64_t k) {
  std::vector<TorchInt4> out;
  const auto gpu = at::device(at::kCUDA);
  const double bytes = static_cast<double>(n * k) / 2;
  for (double total = 0; total < 300e6 || out.size() < 2; total += bytes) {
    const auto codes = at::randint(0, 256, {n, k / 2}, gpu.dtype(at::kByte));
    out.push_back({at::_convert_weight_to_int4pack(codes, 8),
                   at::rand({k / 128, n, 2}, gpu).to(at::kBFloat16)});
  }
  return out;
}

double bytes_of(const PackedWeight& w, const at::Tensor& x, const at::Tensor& y) {
  return static_cast<double>(w.codes.nbytes() + w.words.nbytes() + x.nbytes() + y.nbytes());
}

void ways(double copy, CodeKind kind, std::int64_t group, std::int64_t n, std::int64_t k,
          const std::vector<std::int64_t>& rows) {
  const auto weights = copies_of(kind, n, k, group);
  const auto dense = dense_copies(n, k);
  for (const auto m : rows) {
    const auto x = at::randn({m, k}, at::device(at::kCUDA)).to(at::kBFloat16);
    auto y = at::empty({m, n}, x.options());
    Contender bf16(static_cast<int>(dense.size()),
                   [&](int i) { at::mm_out(y, x, dense[static_cast<std::size_t>(i)].t()); });
    race({&bf16});
    std::printf("%ldx%ld m %4ld bf16 %7.2f us |", n, k, m, bf16.us());
    for (const auto& v : kVariants) {
      const bool wgmma = v.way == Way::wgmma;
      if (m > v.most_rows || (wgmma && (kind != CodeKind::int4 || !has_wgmma()))) continue;
      if (wgmma && (v.number % 1000 > 4 * m || v.number % 1000 * 4 < m)) continue;
      Contender ours(static_cast<int>(weights.size()), [&](int i) {
        multiply(weights[static_cast<std::size_t>(i)], x, y, v.way, v.number);
      });
      race({&ours});
      std::printf(" %s %.2f us %.2fx %.0f%%", v.name, ours.us(), bf16.us() / ours.us(),
                  100 * bytes_of(weights[0], x, y) / ours.us() * 1e-6 / copy);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

/// One shape of the table. `matmul`: FLOP a second of LibTorch's bf16 product, in TFLOP/s.
void table(double copy, double matmul, CodeKind kind, const char* name, std::int64_t n,
           std::int64_t k, const std::vector<std::int64_t>& rows) {
  const bool int4 = kind == CodeKind::int4;
  const auto weights = copies_of(kind, n, k, int4 ? 128 : 64);
  const auto dense = dense_copies(n, k);
  const auto torch = int4 ? torch_copies(n, k) : std::vector<TorchInt4>{};
  for (const auto m : rows) {
    const auto x = at::randn({m, k}, at::device(at::kCUDA)).to(at::kBFloat16);
    auto y = at::empty({m, n}, x.options());
    auto slab = at::empty({n, k}, x.options());
    Contender bf16(static_cast<int>(dense.size()),
                   [&](int i) { at::mm_out(y, x, dense[static_cast<std::size_t>(i)].t()); });
    Contender ours(static_cast<int>(weights.size()), [&](int i) {
      const auto& w = weights[static_cast<std::size_t>(i)];
      if (m <= most_rows(w.view())) return multiply(w, x, y);
      require(dequantize(w.view(), 0, n, DenseType::bf16, slab.mutable_data_ptr(), stream()),
              "dequantize");
      at::mm_out(y, x, slab.t());
    });
    std::vector<Contender*> all{&bf16, &ours};
    std::unique_ptr<Contender> theirs;
    if (int4 && m <= 1024) {
      theirs = std::make_unique<Contender>(static_cast<int>(torch.size()), [&](int i) {
        const auto& w = torch[static_cast<std::size_t>(i)];
        at::_weight_int4pack_mm(x, w.weight, 128, w.scales_and_zeros);
      });
      all.push_back(theirs.get());
    }
    race(all);
    const double limit = std::max(bytes_of(weights[0], x, y) / copy * 1e-6,
                                  2.0 * static_cast<double>(m * n * k) / matmul * 1e-6);
    std::printf("| %s %ldx%ld | %ld | %.1f | %.2f | %s | %.0f %% |\n", name, n, k, m, ours.us(),
                bf16.us() / ours.us(),
                theirs ? std::to_string(theirs->us() / ours.us()).substr(0, 4).c_str() : "",
                100 * limit / ours.us());
    std::fflush(stdout);
  }
}

void quantizing(double copy) {
  const std::int64_t count = 8192 * 28672;
  std::vector<at::Tensor> x;
  for (int i = 0; i < 2; ++i)
    x.push_back(at::randn({count}, at::device(at::kCUDA).dtype(at::kBFloat16)));
  const auto gpu = at::device(at::kCUDA);
  auto packed = at::empty({count / 2}, gpu.dtype(at::kByte)), absmax = at::empty({count / 64}, gpu);
  auto bad = at::zeros({1}, gpu.dtype(at::kInt));
  auto out = at::empty({count}, x[0].options());
  const auto table = at::linspace(-1, 1, 16, gpu);
  const double moved = static_cast<double>(count) * (2 + 0.5 + 4.0 / 64);
  for (const auto type : {bnb::QuantType::nf4, bnb::QuantType::fp4}) {
    Contender quantize(2, [&](int i) {
      require(bnb::quantize_blocks_cuda(
                  x[static_cast<std::size_t>(i)].const_data_ptr(), DenseType::bf16, count, 64, type,
                  packed.mutable_data_ptr<std::uint8_t>(), absmax.mutable_data_ptr<float>(),
                  bad.mutable_data_ptr<int>(), stream()),
              "quantize");
    });
    Contender dequantize(2, [&](int) {
      require(
          bnb::dequantize_blocks_cuda(packed.const_data_ptr<std::uint8_t>(),
                                      table.const_data_ptr<float>(), absmax.const_data_ptr<float>(),
                                      64, count, DenseType::bf16, out.mutable_data_ptr(), stream()),
          "dequantize");
    });
    race({&quantize, &dequantize});
    for (auto& [what, us] : std::map<const char*, double>{{"quantize", quantize.us()},
                                                          {"dequantize", dequantize.us()}})
      std::printf("| %s %s, blocks of 64, bf16 | %.0f G/s | %.0f %% |\n",
                  type == bnb::QuantType::nf4 ? "NF4" : "FP4", what,
                  static_cast<double>(count) / us * 1e-3, 100 * moved / us * 1e-6 / copy);
  }
}

/// A projection of so many experts with one row each, in one launch and one after the other.
void experts(int count, std::int64_t n, std::int64_t k) {
  const auto weights = copies_of(CodeKind::int4, n, k, 128);
  const auto x = at::randn({count, k}, at::device(at::kCUDA)).to(at::kBFloat16);
  auto y = at::empty({count, n}, x.options());
  const auto expert = [&](int call, int i) -> const PackedWeight& {
    return weights[static_cast<std::size_t>(call * count + i) % weights.size()];
  };
  const int copies = std::max<int>(1, static_cast<int>(weights.size()) / count);
  Contender together(copies, [&](int call) {
    std::vector<ProductSegment> segments;
    for (int i = 0; i < count; ++i)
      segments.push_back({expert(call, i).codes.const_data_ptr(), words_of(expert(call, i).words),
                          nullptr, i, 1});
    multiply_grouped(weights.front(), segments, x, y);
  });
  Contender one_by_one(copies, [&](int call) {
    for (int i = 0; i < count; ++i) {
      auto row = y.narrow(0, i, 1);
      multiply(expert(call, i), x.narrow(0, i, 1), row);
    }
  });
  race({&together, &one_by_one});
  std::printf("| %d of %ldx%ld | %.1f | %.1f |\n", count, n, k, together.us(), one_by_one.us());
}

double matmul_rate() {
  const auto gpu = at::device(at::kCUDA).dtype(at::kBFloat16);
  const auto a = at::randn({8192, 8192}, gpu), b = at::randn({8192, 8192}, gpu);
  auto c = at::empty_like(a);
  Contender product(1, [&](int) { at::mm_out(c, a, b.t()); });
  race({&product}, 5);
  return 2.0 * 8192 * 8192 * 8192 / product.us() * 1e-6;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "table";
  at::manual_seed(1);
  const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
  if (mode == "profile" && argc == 7) {
    const auto number = [&](int i) { return std::stol(argv[i]); };
    const auto w = random_weight(CodeKind::int4, number(2), number(3), 128);
    const auto x = at::randn({number(4), number(3)}, at::device(at::kCUDA)).to(at::kBFloat16);
    auto y = at::empty({number(4), number(2)}, x.options());
    for (int i = 0; i < 3; ++i)
      multiply(w, x, y, static_cast<Way>(number(5)), static_cast<int>(number(6)));
    require(cudaStreamSynchronize(stream()), "product");
    return 0;
  }
  const double copy = copy_rate();
  cudaDeviceProp device{};
  require(cudaGetDeviceProperties(&device, 0), "device");
  if (mode == "ways") {
    std::printf("%s, copy %.2f TB/s\n", device.name, copy);
    if (argc > 4) {
      std::vector<std::int64_t> given;
      for (int i = 2; i < argc; ++i) given.push_back(std::stol(argv[i]));
      ways(copy, CodeKind::int4, 128, given[0], given[1], {given.begin() + 2, given.end()});
      return 0;
    }
    const std::vector<std::int64_t> rows{1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048};
    ways(copy, CodeKind::int4, 128, 8192, 28672, rows);
    ways(copy, CodeKind::int4, 128, 28672, 8192, {1, 16, 32, 64, 128});
    ways(copy, CodeKind::int4, 128, 4096, 4096, {1, 8, 16, 32, 64, 128});
    ways(copy, CodeKind::table4, 64, 8192, 28672, {1, 8, 16, 32, 64});
    return 0;
  }
  if (mode != "table") {
    std::fprintf(stderr, "usage: bench table | ways [N K M...] | profile N K M WAY VARIANT\n");
    return 2;
  }
  const double matmul = matmul_rate();
  std::printf("%s: copy %.2f TB/s, bf16 product of 8192 cubed %.0f TFLOP/s\n\n", device.name, copy,
              matmul);
  const std::vector<std::int64_t> all{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096},
      some{1, 8, 16, 32, 128, 512, 2048};
  std::printf(
      "| int4, groups of 128 | M | us | to bf16 | to _weight_int4pack_mm | of the limit |\n"
      "| --- | --- | --- | --- | --- | --- |\n");
  table(copy, matmul, CodeKind::int4, "70B down", 8192, 28672, all);
  table(copy, matmul, CodeKind::int4, "70B gate, up", 28672, 8192, some);
  table(copy, matmul, CodeKind::int4, "70B q, o", 8192, 8192, some);
  table(copy, matmul, CodeKind::int4, "70B k, v", 1024, 8192, some);
  table(copy, matmul, CodeKind::int4, "8B gate, up", 14336, 4096, some);
  table(copy, matmul, CodeKind::int4, "8B down", 4096, 14336, some);
  table(copy, matmul, CodeKind::int4, "8B q, o", 4096, 4096, all);
  table(copy, matmul, CodeKind::int4, "8B k, v", 1024, 4096, some);
  std::printf(
      "\n| NF4, blocks of 64 | M | us | to bf16 | | of the limit |\n"
      "| --- | --- | --- | --- | --- | --- |\n");
  table(copy, matmul, CodeKind::table4, "70B down", 8192, 28672, some);
  table(copy, matmul, CodeKind::table4, "8B q, o", 4096, 4096, some);
  std::printf("\n| | rate | of the copy rate |\n| --- | --- | --- |\n");
  quantizing(copy);
  std::printf(
      "\n| experts with a row each | us in one launch | us one by one |\n| --- | --- | --- |\n");
  for (const int count : {8, 64}) experts(count, 2048, 768);
  return 0;
}
