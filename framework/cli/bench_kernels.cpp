#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <set>

#include "cli/program.h"
#include "graft/error.h"
#include "graft/pool.h"
#include "kernels/linear.h"
#include "kernels/machine_rates.h"
#include "kernels/row_int8.h"

namespace graft::cli {
namespace {

using namespace graft::kernels;

struct Settings {
  bool quick = false;
  std::vector<std::string> levels, kernels;
  std::vector<std::int64_t> rows;
  int rounds = 0;
};

/// One thread: the time of its core, so that a busy machine counts less. More: the time that
/// passes.
double now(int threads) {
  timespec at{};
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &at);
  return static_cast<double>(at.tv_sec) + 1e-9 * static_cast<double>(at.tv_nsec);
}

/// The last-level cache's bytes, 32 MiB where the system does not say.
std::int64_t last_level_cache() {
  std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size");
  std::int64_t size = 0;
  char unit = ' ';
  if (!(file >> size >> unit)) return 32 << 20;
  return size * (unit == 'K' ? 1 << 10 : unit == 'M' ? 1 << 20 : 1);
}

/// Memory of more than four times the last-level cache. Its bytes are weights of every kind: any
/// byte is a code, any 16 bits a small bfloat16, any 32 bits a small float.
class Weights {
 public:
  explicit Weights(std::int64_t bytes) : bytes_(bytes) {
    void* memory = mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
      throw Error(ErrorKind::resource, "no memory for weights that exceed the cache")
          .expected(megabytes(static_cast<std::uint64_t>(bytes)));
    madvise(memory, static_cast<std::size_t>(bytes), MADV_HUGEPAGE);
    memory_ = static_cast<std::uint8_t*>(memory);
    constexpr std::int64_t kPart = 1 << 20;
    for_each_chunk(pool(), bytes / kPart, [&](std::int64_t part) {
      auto* words = reinterpret_cast<std::uint16_t*>(memory_ + part * kPart);
      auto state = static_cast<std::uint32_t>(part * 2654435761U + 1);
      for (std::int64_t i = 0; i < kPart / 2; ++i) {
        state = state * 1664525U + 1013904223U;
        words[i] = static_cast<std::uint16_t>(0x3C00U | (state >> 16 & 0x81FFU));
      }
    });
  }
  ~Weights() { munmap(memory_, static_cast<std::size_t>(bytes_)); }
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  /// The next `bytes` bytes, which are the longest ago to have been in a cache.
  std::uint8_t* next(std::int64_t bytes) {
    bytes = (bytes + 4095) / 4096 * 4096;
    if (at_ + bytes + 4096 > bytes_) at_ = 0;
    std::uint8_t* out = memory_ + at_;
    at_ += bytes;
    return out;
  }

 private:
  std::uint8_t* memory_ = nullptr;
  std::int64_t bytes_, at_ = 0;
};

struct Kernel {
  const char* name;
  PanelKind kind;
  Act act;
  std::int64_t group;  ///< 0: one scale a row, LLM.int8
  DotKind dot;
};
constexpr Kernel kKernels[] = {
    {"int4-a15", PanelKind::int4, Act::a15, 128, DotKind::int8},
    {"int4-a8", PanelKind::int4, Act::a8, 128, DotKind::int8},
    {"int4-bf16", PanelKind::int4, Act::bf16, 128, DotKind::bf16},
    {"int4-f32", PanelKind::int4, Act::f32, 128, DotKind::f32},
    {"int4-a15-act-order", PanelKind::int4, Act::a15, 128, DotKind::int8},
    {"nf4", PanelKind::table4, Act::a15, 64, DotKind::int8},
    {"nf4-bf16", PanelKind::table4, Act::bf16, 64, DotKind::bf16},
    {"nf4-f32", PanelKind::table4, Act::f32, 64, DotKind::f32},
    {"int8", PanelKind::int8, Act::a8, 0, DotKind::int8},
    {"int8-a15", PanelKind::int8, Act::a15, 128, DotKind::int8},
};

/// What a row of the table needs: best time, bytes read, multiply-adds.
struct Contender {
  std::string kernel, level;
  const Kernel* of = nullptr;
  CpuLevel at = CpuLevel::scalar;
  std::int64_t bytes = 0;
  std::function<void(std::uint8_t*)> run;
  std::vector<double> times = {};
  double best = 1e30;
};

class Bench {
 public:
  Bench(Program& program, const Settings& settings)
      : program_(program),
        settings_(settings),
        weights_(std::max<std::int64_t>(last_level_cache() * 9 / 2, 320 << 20)) {}

  void run() {
    const int most = at::get_num_threads();
    for (const int threads : std::set<int>{1, most}) {
      at::set_num_threads(threads);
      measure_rates(threads);
      for (const auto& [n, k] : shapes())
        for (const std::int64_t m : rows()) measure(threads, m, n, k);
    }
    at::set_num_threads(most);
    report();
  }

 private:
  std::vector<std::pair<std::int64_t, std::int64_t>> shapes() const {
    if (settings_.quick) return {{14336, 4096}};
    return {{14336, 4096}, {4096, 14336}, {4096, 4096}};
  }
  std::vector<std::int64_t> rows() const {
    if (!settings_.rows.empty()) return settings_.rows;
    return settings_.quick ? std::vector<std::int64_t>{1, 8, 32}
                           : std::vector<std::int64_t>{1, 2, 4, 8, 16, 32, 64, 128, 512};
  }
  std::vector<CpuLevel> levels() const {
    if (settings_.levels.empty()) return {cpu_level()};
    std::vector<CpuLevel> out;
    for (const auto& word : settings_.levels) out.push_back(choose_cpu_level(word, cpu_level()));
    return out;
  }
  bool wanted(std::string_view kernel) const {
    return settings_.kernels.empty() ||
           std::find(settings_.kernels.begin(), settings_.kernels.end(), kernel) !=
               settings_.kernels.end();
  }

  double read(int threads, std::int64_t bytes) {
    std::uint8_t* memory = weights_.next(bytes);
    const std::int64_t parts = threads == 1 ? 1 : 64 * threads;
    const std::int64_t part = bytes / parts / 256 * 256;
    const double begin = now(threads);
    for_each_chunk(pool(), parts, [&](std::int64_t i) {
      volatile std::uint64_t keep = read_memory(cpu_level(), memory + i * part, part);
      (void)keep;
    });
    return static_cast<double>(part * parts) / (now(threads) - begin);
  }

  void measure_rates(int threads) {
    dots_.clear();
    for (const DotKind kind : {DotKind::int8, DotKind::bf16, DotKind::f32}) {
      double best = 0;
      for (int round = 0; round < 10; ++round) {
        const double begin = now(threads);
        std::int64_t count = 0;
        std::vector<std::int64_t> counts(static_cast<std::size_t>(threads));
        for_each_chunk(pool(), threads, [&](std::int64_t i) {
          counts[static_cast<std::size_t>(i)] = multiply_registers(cpu_level(), kind, 400000);
        });
        for (const auto part : counts) count += part;
        best = std::max(best, static_cast<double>(count) / (now(threads) - begin));
      }
      dots_[kind] = best;
    }
    double best_read = 0;
    for (int round = 0; round < 12; ++round)
      best_read = std::max(best_read, read(threads, 64 << 20));
    Value rates;
    rates.set("threads", static_cast<std::int64_t>(threads));
    rates.set("read_gb_per_s", best_read / 1e9);
    rates.set("int8_gmac_per_s", dots_[DotKind::int8] / 1e9);
    rates.set("bf16_gmac_per_s", dots_[DotKind::bf16] / 1e9);
    rates.set("f32_gmac_per_s", dots_[DotKind::f32] / 1e9);
    rates_.push_back(rates);
    if (!program_.globals.json)
      std::printf("%d thread%s: read %.1f GB/s, dots int8 %.0f, bf16 %.0f, f32 %.0f G/s\n", threads,
                  threads == 1 ? "" : "s", best_read / 1e9, dots_[DotKind::int8] / 1e9,
                  dots_[DotKind::bf16] / 1e9, dots_[DotKind::f32] / 1e9);
  }

  Contender contender(const Kernel& kernel, CpuLevel level, std::int64_t m, std::int64_t n,
                      std::int64_t k) {
    const auto shape = panel_shape(kernel.kind, n, k, kernel.group ? kernel.group : k);
    Contender out;
    out.kernel = kernel.name;
    out.level = name_of(level);
    out.of = &kernel;
    out.at = level;
    // As in files of GPTQ and AWQ, and of bitsandbytes.
    const auto type = kernel.kind == PanelKind::table4 ? ElementType::f32 : ElementType::f16;
    const std::int64_t scale_bytes =
        kernel.group ? shape.scale_count * (type == ElementType::f32 ? 4 : 2) : n * 4;
    out.bytes = shape.code_bytes + scale_bytes + (kernel.group ? shape.zero_bytes : 0);
    out.run = [this, kernel, level, shape, type, scale_bytes, m, n, k](std::uint8_t* memory) {
      if (kernel.group == 0) {
        RowInt8Args args;
        args.shape = &shape;
        args.codes = memory;
        args.scales = reinterpret_cast<const float*>(memory + shape.code_bytes);
        args.m = m;
        args.x = x_.const_data_ptr();
        args.x_type = args.y_type = ElementType::bf16;
        args.x_stride = k;
        args.y = y_.mutable_data_ptr();
        args.y_stride = n;
        return multiply_rows_int8_at(level, args, pool());
      }
      PanelWeight weight;
      weight.shape = shape;
      weight.codes = memory;
      weight.scales = {memory + shape.code_bytes, type};
      weight.zeros = shape.zero_bytes ? memory + shape.code_bytes + scale_bytes : nullptr;
      weight.table = table_.const_data_ptr<float>();
      if (std::string_view(kernel.name).ends_with("act-order"))
        weight.order = order_.const_data_ptr<std::int32_t>();
      LinearArgs args;
      args.weight = &weight;
      args.act = kernel.act;
      args.m = m;
      args.x = x_.const_data_ptr();
      args.x_type = args.y_type = ElementType::bf16;
      args.x_stride = k;
      args.y = y_.mutable_data_ptr();
      args.y_stride = n;
      multiply_at(level, args, pool());
    };
    return out;
  }

  void measure(int threads, std::int64_t m, std::int64_t n, std::int64_t k) {
    const auto bf16 = at::TensorOptions(at::kBFloat16);
    x_ = at::randn({m, k}).to(at::kBFloat16);
    y_ = at::empty({m, n}, bf16);
    table_ = at::linspace(-1, 1, 16);
    order_ = at::randperm(k, at::kInt);
    std::vector<Contender> contenders;
    for (const auto& kernel : kKernels)
      if (wanted(kernel.name))
        for (const CpuLevel level : levels())
          contenders.push_back(contender(kernel, level, m, n, k));
    Contender dense;
    dense.kernel = "torch-bf16";
    dense.level = "libtorch";
    dense.bytes = 2 * n * k;
    dense.run = [&](std::uint8_t* memory) {
      const c10::InferenceMode guard;
      y_ = at::linear(x_, at::from_blob(memory, {n, k}, bf16));
    };
    contenders.push_back(dense);

    double best_read = 0;
    const int rounds = settings_.rounds ? settings_.rounds : m <= 8 ? 9 : m <= 64 ? 5 : 3;
    for (int round = 0; round < rounds; ++round) {
      best_read = std::max(best_read, read(threads, 32 << 20));
      for (auto& at : contenders) {
        std::uint8_t* memory = weights_.next(at.bytes);
        const double begin = now(threads);
        at.run(memory);
        at.times.push_back(now(threads) - begin);
        at.best = std::min(at.best, at.times.back());
      }
    }
    pool().drain();
    const double work = static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
    if (!program_.globals.json)
      std::printf("\nm %lld, n %lld, k %lld, %d thread%s, read %.1f GB/s\n",
                  static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(k),
                  threads, threads == 1 ? "" : "s", best_read / 1e9);
    const double dense_time = contenders.back().best;
    for (auto& at : contenders) {
      std::sort(at.times.begin(), at.times.end());
      const double rate = static_cast<double>(at.bytes) / at.best;
      const double peak = dots_[at.of ? at.of->dot : DotKind::bf16];
      Value row;
      row.set("kernel", at.kernel);
      row.set("level", at.level);
      row.set("threads", static_cast<std::int64_t>(threads));
      row.set("m", m);
      row.set("n", n);
      row.set("k", k);
      row.set("seconds", at.best);
      row.set("median_seconds", at.times[at.times.size() / 2]);
      row.set("gb_per_s", rate / 1e9);
      row.set("share_of_read", rate / best_read);
      row.set("share_of_dot_peak", work / at.best / peak);
      row.set("ratio_to_bf16", dense_time / at.best);
      rows_.push_back(row);
      if (!program_.globals.json)
        std::printf(
            "  %-20s %-8s %9.3f ms (median %9.3f) %6.1f GB/s %4.0f%% of read %7.1f GMAC/s "
            "%4.0f%% of dots %6.2f x bf16\n",
            at.kernel.c_str(), at.level.c_str(), at.best * 1e3, at.times[at.times.size() / 2] * 1e3,
            rate / 1e9, 100 * rate / best_read, work / at.best / 1e9, 100 * work / at.best / peak,
            dense_time / at.best);
    }
    std::fflush(stdout);
  }

  void report() const {
    if (!program_.globals.json) return;
    Value document;
    document.set("rates", rates_);
    document.set("rows", rows_);
    program_.print_json(document);
  }

  Program& program_;
  const Settings& settings_;
  Weights weights_;
  std::map<DotKind, double> dots_;
  at::Tensor x_, y_, table_, order_;
  Value::Array rows_, rates_;
};

}  // namespace

void add_bench_kernels(CLI::App& bench, Program& program) {
  auto* verb = bench.add_subcommand(
      "kernels", "Each CPU kernel against the memory's read rate and LibTorch's bfloat16 linear");
  auto settings = std::make_shared<Settings>();
  verb->add_flag("--quick", settings->quick, "One shape and few row counts: under 40 seconds");
  verb->add_option("--level", settings->levels, "scalar, avx2, avx512; the highest if not said")
      ->check(CLI::IsMember({"scalar", "avx2", "avx512"}));
  verb->add_option("--kernel", settings->kernels, "Only these, such as int4-a15 or nf4");
  verb->add_option("--rows", settings->rows, "Numbers of rows of x")->check(at_least_one());
  verb->add_option("--rounds", settings->rounds, "Rounds of which the best counts")
      ->check(at_least_one());
  verb->footer(
      "Weights rotate through more memory than four times the last-level cache, all kernels take\n"
      "turns in each round, and the best round counts. With one thread the time is that of its\n"
      "core (what other programs take does not count), with more it is what passes.\n\n"
      "  graft bench kernels --quick\n"
      "  graft bench kernels --rows 1 --kernel int4-a15 nf4 int8 --json");
  verb->callback([&program, settings] { Bench(program, *settings).run(); });
}

}  // namespace graft::cli
