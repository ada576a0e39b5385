#include "kernels/int8.h"

#include <doctest/doctest.h>

#include <cstring>
#include <vector>

#include "graft/checkpoint.h"

using namespace graft;
using namespace graft::bnb;

TEST_CASE("int8 rows and their absmax are those of bitsandbytes") {
  const auto file = Checkpoint::open_file(GRAFT_TEST_DATA "/vectors/bnb_int8_32x64.safetensors");
  std::vector<_Float16> half(32 * 64);
  std::vector<std::int8_t> expected(32 * 64), codes(64);
  std::vector<float> scales(32);
  file.read(file.at("weight_fp16"), half.data());
  file.read(file.at("weight"), expected.data());
  file.read(file.at("SCB"), scales.data());
  for (std::size_t n = 0; n < 32; ++n) {
    const std::vector<float> row(half.begin() + n * 64, half.begin() + (n + 1) * 64);
    CHECK(quantize_row(row.data(), 64, codes.data()) == scales[n]);
    CHECK(std::equal(codes.begin(), codes.end(), expected.begin() + n * 64));
  }
}

TEST_CASE("codes round half to even and a row of zeros has absmax zero") {
  const std::vector<float> row{0.5F, 1.5F, 2.5F, -0.5F, -1.5F, -2.5F, 127, 3.49F};
  std::vector<std::int8_t> codes(row.size());
  CHECK(quantize_row(row.data(), 8, codes.data()) == 127);
  CHECK(codes == std::vector<std::int8_t>{0, 2, 2, 0, -2, -2, 127, 3});
  const std::vector<float> zeros(8);
  CHECK(quantize_row(zeros.data(), 8, codes.data()) == 0);
  CHECK(codes == std::vector<std::int8_t>(8));
}
