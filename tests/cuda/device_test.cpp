// The kernels on this machine's device against plain sums in float64. Exits with 77 where there is
// no device. It needs CUDA's run time and nothing else.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda/dequantize.h"
#include "cuda/device.h"
#include "cuda/pack.h"
#include "cuda/product.h"

namespace {

using namespace graft::cuda;

int g_failures = 0;

void expect(bool kept, const std::string& what) {
  if (kept) return;
  std::printf("FAILED: %s\n", what.c_str());
  ++g_failures;
}
void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAILED: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

/// Memory on the device.
class Buffer {
 public:
  explicit Buffer(std::size_t bytes) : bytes_(bytes) {
    require(cudaMalloc(&data_, std::max<std::size_t>(bytes, 16)), "cudaMalloc");
    require(cudaMemset(data_, 0, std::max<std::size_t>(bytes, 16)), "cudaMemset");
  }
  template <class T>
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size() * sizeof(T)) {
    require(cudaMemcpy(data_, values.data(), bytes_, cudaMemcpyHostToDevice), "to the device");
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  Buffer& operator=(Buffer&&) = delete;

  void* data() const { return data_; }
  template <class T>
  std::vector<T> read() const {
    std::vector<T> out(bytes_ / sizeof(T));
    require(cudaMemcpy(out.data(), data_, bytes_, cudaMemcpyDeviceToHost), "from the device");
    return out;
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

/// 16 bits of a number that both types hold exactly, or nearly.
std::uint16_t to_bits(float value, Element element) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (element == Element::bf16) return static_cast<std::uint16_t>(bits >> 16);
  if (value == 0) return 0;
  const auto exponent = static_cast<int>(bits >> 23 & 255) - 112;  // only normal numbers are used
  return static_cast<std::uint16_t>((bits >> 16 & 0x8000) |
                                    static_cast<std::uint32_t>(exponent) << 10 |
                                    (bits >> 13 & 0x3FF));
}
double from_bits(std::uint16_t bits, Element element) {
  if (element == Element::bf16) {
    const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
    float out;
    std::memcpy(&out, &wide, 4);
    return out;
  }
  const int exponent = bits >> 10 & 31;
  const double part = bits & 0x3FF;
  const double size =
      exponent == 0 ? std::ldexp(part, -24) : std::ldexp(1024 + part, exponent - 25);
  return bits & 0x8000 ? -size : size;
}

struct Weight {
  FragmentShape shape;
  Element element;
  std::vector<std::uint32_t> words;  // [k / 8][n], as checkpoints have them
  std::vector<double> dense;         // [n][k]
  Buffer codes, scales, table;

  Fragments view() const {
    return {shape, codes.data(), static_cast<const std::uint32_t*>(scales.data()),
            static_cast<const float*>(table.data()), element};
  }
};

Weight random_weight(CodeKind kind, std::int64_t n, std::int64_t k, std::int64_t group,
                     Element element, std::mt19937& random) {
  const auto shape = fragment_shape(kind, n, k, group);
  std::vector<float> table(16);
  for (std::size_t i = 0; i < 16; ++i) table[i] = (static_cast<float>(i) - 7.5f) / 8;
  std::vector<std::uint32_t> scales(static_cast<std::size_t>(shape.word_count));
  std::vector<double> dense(static_cast<std::size_t>(n * k));
  std::vector<std::uint32_t> words(static_cast<std::size_t>(k / 8 * n));
  for (auto& word : words) word = static_cast<std::uint32_t>(random());
  for (std::int64_t output = 0; output < n; ++output)
    for (std::int64_t of = 0; of < (k + shape.group - 1) / shape.group; ++of) {
      const float scale = std::ldexp(static_cast<float>(64 + random() % 64), -13);  // 7 bits
      std::uint32_t& word = scales[static_cast<std::size_t>(word_place(shape, output, of))];
      if (kind == CodeKind::int4)
        word = to_bits(scale, element) | static_cast<std::uint32_t>(random() % 17) << 16;
      else
        std::memcpy(&word, &scale, 4);
      for (std::int64_t i = of * shape.group; i < std::min(k, (of + 1) * shape.group); ++i) {
        const std::uint32_t code =
            words[static_cast<std::size_t>(i / 8 * n + output)] >> (i % 8 * 4) & 15;
        dense[static_cast<std::size_t>(output * k + i)] =
            static_cast<double>(scale) *
            (kind == CodeKind::int4 ? static_cast<double>(code) - static_cast<double>(word >> 16)
                                    : static_cast<double>(table[code]));
      }
    }
  const Buffer checkpoint(words);
  Weight out{shape, element, words, dense, Buffer(static_cast<std::size_t>(shape.code_bytes)),
             Buffer(scales), Buffer(table)};
  require(pack_codes(shape, static_cast<const std::uint32_t*>(checkpoint.data()), out.codes.data(),
                     nullptr),
          "pack_codes");
  return out;
}

void check_codes_come_back(const Weight& w, const std::string& what) {
  Buffer back(w.words.size() * 4);
  require(unpack_codes(w.shape, w.codes.data(), static_cast<std::uint32_t*>(back.data()), nullptr),
          "unpack_codes");
  expect(back.read<std::uint32_t>() == w.words, what + ": unpacked codes are those packed");
}

void check_dequantize(const Weight& w, const std::string& what) {
  const std::int64_t first = w.shape.n > 64 ? 64 : 0, count = w.shape.n - first;
  Buffer out(static_cast<std::size_t>(count * w.shape.k) * 4);
  require(dequantize(w.view(), first, count, DenseType::f32, out.data(), nullptr), "dequantize");
  const auto found = out.read<float>();
  expect(std::equal(found.begin(), found.end(), w.dense.begin() + first * w.shape.k),
         what + ": dequantized values are exact");
}

void check_product(const Weight& w, std::int64_t m, std::mt19937& random, const std::string& what) {
  const auto n = w.shape.n, k = w.shape.k;
  std::vector<std::uint16_t> x(static_cast<std::size_t>(m * k));
  for (auto& value : x)
    value = to_bits((static_cast<float>(random() % 255) - 127) / 128, w.element);
  std::vector<float> bias(static_cast<std::size_t>(n));
  for (auto& value : bias) value = (static_cast<float>(random() % 255) - 127) / 64;
  const Buffer x_there(x), bias_there(bias), workspace(workspace_bytes());
  // A row of guards behind the result.
  const std::vector<std::uint16_t> guards(static_cast<std::size_t>((m + 1) * n), 0x1234);
  const Buffer y(guards);
  ProductArgs args;
  args.weight = w.view();
  args.m = m;
  args.x = x_there.data();
  args.x_stride = k;
  args.y = y.data();
  args.y_stride = n;
  args.bias = static_cast<const float*>(bias_there.data());
  args.workspace = workspace.data();
  require(multiply(args, nullptr), "multiply");
  const auto found = y.read<std::uint16_t>();
  // Weights and results are rounded to `element`, sums are float32.
  const double unit = w.element == Element::bf16 ? 0x1p-8 : 0x1p-11;
  double worst = 0;
  for (std::int64_t row = 0; row < m; ++row)
    for (std::int64_t output = 0; output < n; ++output) {
      double sum = static_cast<double>(bias[static_cast<std::size_t>(output)]);
      double sizes = std::abs(sum);
      for (std::int64_t i = 0; i < k; ++i) {
        const double term = w.dense[static_cast<std::size_t>(output * k + i)] *
                            from_bits(x[static_cast<std::size_t>(row * k + i)], w.element);
        sum += term;
        sizes += std::abs(term);
      }
      const double got = from_bits(found[static_cast<std::size_t>(row * n + output)], w.element);
      const double error = std::abs(got - sum) / (unit * sizes);
      worst = error <= worst ? worst : error;  // NaN stays
    }
  expect(worst <= 1, what + ": " + std::to_string(worst) + " units from the sum");
  expect(std::equal(found.end() - n, found.end(), guards.begin()), what + ": writes nothing else");
  require(multiply(args, nullptr), "multiply");
  expect(y.read<std::uint16_t>() == found, what + ": the same bits again");
}

}  // namespace

int main() {
  const auto devices = find_devices();
  if (devices.list.empty()) {
    std::printf("skipped: %s\n", devices.reason.c_str());
    return devices.wrong ? 1 : 77;
  }
  std::printf("%s\n", devices.list[0].name.c_str());
  struct Size {
    std::int64_t n, k, group;
  };
  std::mt19937 random(1);
  for (const auto kind : {CodeKind::int4, CodeKind::table4})
    for (const auto element : {Element::bf16, Element::f16})
      for (const auto& size : {Size{8, 8, 8}, {72, 136, 32}, {256, 512, 64}, {1000, 264, 128},
                               {320, 2048, 2048}}) {
        const std::string what = std::string(kind == CodeKind::int4 ? "int4 " : "table4 ") +
                                 (element == Element::bf16 ? "bf16 " : "f16 ") +
                                 std::to_string(size.n) + " x " + std::to_string(size.k) +
                                 ", groups of " + std::to_string(size.group);
        const auto w = random_weight(kind, size.n, size.k, size.group, element, random);
        check_codes_come_back(w, what);
        check_dequantize(w, what);
        for (const std::int64_t m : {1, 8, 9, 17, 33, 100, 200})
          check_product(w, m, random, what + ", " + std::to_string(m) + " rows");
      }
  std::printf("%d failures\n", g_failures);
  return g_failures != 0;
}
