#include "kernels/linear.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "random_weight.h"
#include "thread_pool.h"

using namespace graft;
using namespace graft::kernels;
using graft::tests::RandomWeight;
using graft::tests::ThreadPool;

namespace {

constexpr float kGuard = 12345.0F;

struct Size {
  std::int64_t n, k, group;
};

// 1 x 1; one output; fewer inputs than a group; groups and outputs that end early; several panels;
// groups longer than a block; a group that no step divides.
constexpr Size kSizes[] = {{1, 1, 1},      {1, 300, 64},   {5, 24, 128},
                           {17, 200, 64},  {40, 7, 3},     {33, 129, 32},
                           {64, 512, 512}, {50, 300, 100}, {80, 1000, 256}};
constexpr PanelKind kKinds[] = {PanelKind::int4, PanelKind::int8, PanelKind::table4};

enum class Shape { gaussian, heavy, outliers };

std::vector<float> rows(std::int64_t m, std::int64_t k, Shape shape, unsigned seed = 7) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::student_t_distribution<float> heavy(3);
  std::vector<float> x(static_cast<std::size_t>(m * k));
  for (auto& value : x) {
    value = shape == Shape::heavy ? heavy(random) : normal(random);
    if (shape == Shape::outliers && random() % 333 == 0) value *= 50;
  }
  return x;
}

/// y [m][n] float32 with a guard before and after each row; checks the guards.
std::vector<float> run(CpuLevel level, const RandomWeight& weight, Act act,
                       const std::vector<float>& x, std::int64_t m, const graft_pool& pool,
                       const float* bias = nullptr) {
  const std::int64_t n = weight.packed.shape.n, stride = n + 2;
  std::vector<float> y(static_cast<std::size_t>(m * stride + 2), kGuard);
  LinearArgs args;
  args.weight = &weight.packed;
  args.act = act;
  args.m = m;
  args.x = x.data();
  args.x_stride = weight.packed.shape.k;
  args.y = y.data() + 1;
  args.y_stride = stride;
  args.bias = bias;
  multiply_at(level, args, pool);
  std::vector<float> out;
  for (std::int64_t r = 0; r < m; ++r) {
    const float* row = y.data() + 1 + r * stride;
    CHECK(row[-1] == kGuard);
    CHECK(row[n] == kGuard);
    out.insert(out.end(), row, row + n);
  }
  return out;
}

/// Root of the mean squared error over that of the exact outputs; `of_terms`: over the root of the
/// sum of the squared products, which a sum of few outputs that cancel does not make small.
double error_of(const std::vector<float>& y, const RandomWeight& weight,
                const std::vector<float>& x, std::int64_t m, bool of_terms = false) {
  const std::int64_t n = weight.packed.shape.n;
  double wrong = 0, all = 0;
  for (std::int64_t r = 0; r < m; ++r) {
    const auto exact = weight.times(x.data() + r * weight.packed.shape.k);
    const auto terms = weight.times(x.data() + r * weight.packed.shape.k, true);
    for (std::int64_t o = 0; o < n; ++o) {
      const double d = static_cast<double>(y[static_cast<std::size_t>(r * n + o)]) -
                       exact[static_cast<std::size_t>(o)];
      wrong += d * d;
      const double y_exact = exact[static_cast<std::size_t>(o)];
      all += of_terms ? terms[static_cast<std::size_t>(o)] : y_exact * y_exact;
    }
  }
  return std::sqrt(wrong / all);
}

std::string label(PanelKind kind, CpuLevel level, const Size& size, std::int64_t m) {
  return std::to_string(static_cast<int>(kind)) + " " + std::string(name_of(level)) + " " +
         std::to_string(m) + "x" + std::to_string(size.n) + "x" + std::to_string(size.k) + "/" +
         std::to_string(size.group);
}

}  // namespace

TEST_CASE("codes survive packing at every place") {
  for (const auto kind : kKinds)
    for (const auto& size : kSizes) {
      const RandomWeight weight(kind, size.n, size.k, size.group);
      for (std::int64_t o = 0; o < size.n; ++o)
        for (std::int64_t i = 0; i < size.k; ++i)
          REQUIRE(code_at(weight.packed.shape, weight.packed.codes, o, i) ==
                  weight.codes[static_cast<std::size_t>(o * size.k + i)]);
    }
}

TEST_CASE("whole words pack to the same panels as codes, and come out again") {
  for (const auto& size : {Size{1, 8, 8}, Size{17, 200, 40}, Size{64, 1032, 1032}}) {
    const RandomWeight weight(PanelKind::int4, size.n, size.k, size.group);
    const auto& shape = weight.packed.shape;
    const auto word = [](const RandomWeight& from, std::int64_t o, std::int64_t step) {
      std::uint32_t bits = 0;
      for (std::int64_t i = 0; i < 8; ++i)
        bits |= static_cast<std::uint32_t>(
                    from.codes[static_cast<std::size_t>(o * from.packed.shape.k + 8 * step + i)])
                << (4 * i);
      return bits;
    };
    struct Source {
      const RandomWeight* weight;
      std::uint32_t (*word)(const RandomWeight&, std::int64_t, std::int64_t);
    } source{&weight, +word};
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(shape.code_bytes));
    pack_words(shape,
               {[](const void* self, std::int64_t panel, std::int64_t first, std::int64_t count,
                   std::uint32_t* words) {
                  const auto& at = *static_cast<const Source*>(self);
                  for (std::int64_t s = 0; s < count; ++s)
                    for (std::int64_t j = 0; j < 16; ++j)
                      words[s * 16 + j] = panel * 16 + j < at.weight->packed.shape.n
                                              ? at.word(*at.weight, panel * 16 + j, first + s)
                                              : 0xFFFFFFFFU;
                },
                &source},
               0, shape.panels, codes.data());
    CHECK(std::memcmp(codes.data(), weight.packed.codes, codes.size()) == 0);
    for (std::int64_t step = 0; step < shape.steps; ++step) {
      std::uint32_t words[16];
      unpack_words(shape, codes.data(), 0, step, 1, words);
      for (std::int64_t j = 0; j < std::min<std::int64_t>(16, size.n); ++j)
        CHECK(words[j] == word(weight, j, step));
    }
  }
}

TEST_CASE("integer activations give the oracle's bits at every level, any threads and any rows") {
  for (const auto kind : kKinds)
    for (const auto& size : kSizes)
      for (const auto act : {Act::a15, Act::a8})
        for (const bool shuffled : {false, true}) {
          const RandomWeight weight(kind, size.n, size.k, size.group, shuffled);
          const std::int64_t most = 29;
          const auto x = rows(most, size.k, Shape::outliers);
          const auto oracle = run(CpuLevel::scalar, weight, act, x, most, ThreadPool<1>::table);
          for (const auto level : available_cpu_levels())
            for (const std::int64_t m : {1, 2, 3, 7, 13, 29}) {
              INFO(label(kind, level, size, m));
              const std::vector<float> expected(oracle.begin(), oracle.begin() + m * size.n);
              CHECK(run(level, weight, act, x, m, ThreadPool<1>::table) == expected);
              if (level == available_cpu_levels().back())
                CHECK(run(level, weight, act, x, m, ThreadPool<3>::table) == expected);
            }
        }
}

TEST_CASE("scales in 16 bits give the bits of the same scales in float32") {
  for (const auto type : {ElementType::f16, ElementType::bf16})
    for (const auto kind : kKinds)
      for (const auto& size : kSizes) {
        RandomWeight weight(kind, size.n, size.k, size.group);
        weight.round_scales_to(type);
        for (const auto act : {Act::a15, Act::a8, Act::bf16, Act::f32})
          for (const auto level : available_cpu_levels())
            for (const std::int64_t m : {1, 3, 17}) {
              CAPTURE(label(kind, level, size, m));
              const auto x = rows(m, size.k, Shape::gaussian);
              const auto narrow = run(level, weight, act, x, m, ThreadPool<1>::table);
              const auto halves = weight.packed.scales;
              weight.packed.scales = {weight.scales.data()};
              CHECK(narrow == run(level, weight, act, x, m, ThreadPool<1>::table));
              weight.packed.scales = halves;
            }
      }
}

TEST_CASE("float activations agree with float64 at every level, and with any threads bit for bit") {
  for (const auto kind : kKinds)
    for (const auto& size : kSizes)
      for (const auto act : {Act::f32, Act::bf16}) {
        const RandomWeight weight(kind, size.n, size.k, size.group, true);
        for (const auto level : available_cpu_levels())
          for (const std::int64_t m : {1, 2, 5, 14, 25, 140}) {
            if (m == 140 && (level == CpuLevel::scalar || size.k > 300)) continue;
            INFO(label(kind, level, size, m));
            const auto x = rows(m, size.k, Shape::gaussian);
            const auto y = run(level, weight, act, x, m, ThreadPool<1>::table);
            CHECK(error_of(y, weight, x, m, true) < (act == Act::f32 ? 2e-6 : 8e-3));
            CHECK(run(level, weight, act, x, m, ThreadPool<3>::table) == y);
          }
      }
}

TEST_CASE("15-bit activations lose at most 2e-4, whatever the input looks like") {
  for (const auto kind : kKinds)
    for (const auto shape : {Shape::gaussian, Shape::heavy, Shape::outliers}) {
      const RandomWeight weight(kind, 96, 4096, kind == PanelKind::table4 ? 64 : 128);
      const auto x = rows(2, 4096, shape);
      const auto y =
          run(available_cpu_levels().back(), weight, Act::a15, x, 2, ThreadPool<1>::table);
      const double error = error_of(y, weight, x, 2);
      MESSAGE("kind ", static_cast<int>(kind), " input ", static_cast<int>(shape), " error ",
              error);
      CHECK(error <= 2e-4);
    }
}

TEST_CASE("bias and output types are applied once, after the sum") {
  const RandomWeight weight(PanelKind::int4, 37, 256, 64);
  const auto x = rows(3, 256, Shape::gaussian);
  const auto bias = rows(1, 37, Shape::gaussian, 3);
  for (const auto level : available_cpu_levels()) {
    const auto plain = run(level, weight, Act::a15, x, 3, ThreadPool<1>::table);
    const auto biased = run(level, weight, Act::a15, x, 3, ThreadPool<1>::table, bias.data());
    for (std::size_t i = 0; i < plain.size(); ++i) CHECK(biased[i] == plain[i] + bias[i % 37]);
    for (const auto type : {ElementType::bf16, ElementType::f16}) {
      std::vector<std::uint16_t> halves(3 * 37 + 1, 0xABCD);
      LinearArgs args;
      args.weight = &weight.packed;
      args.m = 3;
      args.x = x.data();
      args.x_stride = 256;
      args.y = halves.data();
      args.y_type = type;
      args.y_stride = 37;
      multiply_at(level, args, ThreadPool<2>::table);
      CHECK(halves.back() == 0xABCD);
      std::vector<std::uint16_t> expected(3 * 37);
      store_row_scalar(plain.data(), nullptr, 3 * 37, type, expected.data());
      for (std::size_t i = 0; i < expected.size(); ++i) REQUIRE(halves[i] == expected[i]);
    }
  }
}

TEST_CASE("rows in 16 bits are taken as they are, also through a permutation") {
  for (const bool shuffled : {false, true}) {
    const RandomWeight weight(PanelKind::int4, 20, 203, 64, shuffled);
    std::mt19937 random(3);
    for (const auto type : {ElementType::bf16, ElementType::f16}) {
      std::vector<std::uint16_t> halves(2 * 203);
      std::vector<float> wide;
      for (auto& half : halves) {
        half = static_cast<std::uint16_t>(type == ElementType::bf16
                                              ? 0x3F00 + random() % 0x200 + random() % 2 * 0x8000
                                              : 0x3000 + random() % 0x1000 + random() % 2 * 0x8000);
        float value;
        if (type == ElementType::bf16) {
          const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
          std::memcpy(&value, &bits, 4);
        } else {
          _Float16 narrow;
          std::memcpy(&narrow, &half, 2);
          value = static_cast<float>(narrow);
        }
        wide.push_back(value);
      }
      for (const auto level : available_cpu_levels())
        for (const auto act : {Act::a15, Act::f32}) {
          const auto expected = run(level, weight, act, wide, 2, ThreadPool<1>::table);
          std::vector<float> y(40);
          LinearArgs args;
          args.weight = &weight.packed;
          args.act = act;
          args.m = 2;
          args.x = halves.data();
          args.x_type = type;
          args.x_stride = 203;
          args.y = y.data();
          args.y_stride = 20;
          multiply_at(level, args, ThreadPool<1>::table);
          CHECK(y == expected);
        }
    }
  }
}

TEST_CASE("a row with NaN or infinity gives NaN, and leaves its neighbours alone") {
  const RandomWeight weight(PanelKind::int4, 20, 256, 64);
  auto x = rows(3, 256, Shape::gaussian);
  const auto clean = run(CpuLevel::scalar, weight, Act::a15, x, 3, ThreadPool<1>::table);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    x[256 + 77] = bad;
    for (const auto level : available_cpu_levels()) {
      const auto y = run(level, weight, Act::a15, x, 3, ThreadPool<1>::table);
      for (std::size_t o = 0; o < 20; ++o) {
        CHECK(y[o] == clean[o]);
        CHECK(std::isnan(y[20 + o]));
        CHECK(y[40 + o] == clean[40 + o]);
      }
    }
  }
}

TEST_CASE("rows of zeros and of numbers too small to divide give zeros") {
  const RandomWeight weight(PanelKind::table4, 20, 128, 64);
  std::vector<float> x(256, 0.0F);
  x[130] = 1e-38F;
  for (const auto level : available_cpu_levels())
    for (const float y : run(level, weight, Act::a15, x, 2, ThreadPool<1>::table)) CHECK(y == 0);
}
