// Quantizing to 4 bits on one thread, in weights a second of its core.
//   cmake --build --preset release --target graft_bench_four_bit
//   build/release/bin/graft_bench_four_bit; python bench/peers/four_bit.py

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "kernels/four_bit.h"

namespace {

double core_seconds() {
  timespec at{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &at);
  return static_cast<double>(at.tv_sec) + 1e-9 * static_cast<double>(at.tv_nsec);
}

}  // namespace

int main() {
  using namespace graft;
  constexpr std::int64_t kCount = 4096 * 4096, kBlock = 64;
  std::mt19937 random(1);
  std::vector<std::uint16_t> halves(kCount);
  std::vector<float> wide(kCount);
  for (auto& half : halves)  // magnitudes from 2^-7 to 2^-3 in both 16-bit types' patterns
    half = static_cast<std::uint16_t>(0x3C00 + random() % 0x200 + (random() % 2) * 0x8000);
  for (auto& value : wide) value = std::normal_distribution<float>(0, 0.02F)(random);
  std::vector<std::uint8_t> packed(kCount / 2);
  std::vector<float> absmax(kCount / kBlock);
  constexpr const char* kTypes[] = {"nf4", "fp4"};
  constexpr const char* kElements[] = {"float32", "bfloat16", "float16"};
  for (const auto level : kernels::available_cpu_levels())
    for (int type = 0; type < 2; ++type)
      for (int element = 0; element < 3; ++element) {
        const void* x = element == 0 ? static_cast<const void*>(wide.data()) : halves.data();
        double best = 1e30;
        for (int round = 0; round < (level == kernels::CpuLevel::scalar ? 1 : 7); ++round) {
          const double begin = core_seconds();
          bnb::quantize_elements_at(level, x, static_cast<kernels::ElementType>(element), kCount,
                                    kBlock, static_cast<bnb::QuantType>(type), 0, kCount / kBlock,
                                    packed.data(), absmax.data());
          best = std::min(best, core_seconds() - begin);
        }
        std::printf("%-7s %s from %-8s %6.0f M weights/s\n",
                    std::string(kernels::name_of(level)).c_str(), kTypes[type], kElements[element],
                    static_cast<double>(kCount) / best / 1e6);
      }
}
