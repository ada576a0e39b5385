// The state of a 4-bit weight of bitsandbytes: JSON text and companions of sizes and types that the
// input chooses. Six bytes of sizes, then the JSON.

#include "bnb/quant_state.h"

#include <ATen/ATen.h>

#include "fuzz.h"
#include "json_mutator.h"

using namespace graft;
using namespace graft::fuzz;

namespace {

constexpr std::size_t kSizes = 6;

/// A float that is finite, or seldom not.
at::Tensor filled(std::int64_t count, unsigned kind) {
  static const at::ScalarType kTypes[] = {at::kFloat, at::kByte, at::kHalf, at::kLong};
  auto out = at::full({count}, 0.5, at::TensorOptions(at::kFloat));
  if (kind & 4 && count > 0) out[count - 1] = std::numeric_limits<double>::quiet_NaN();
  return out.to(kTypes[kind & 3]);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < kSizes) return 0;
  const std::int64_t rows = data[0], columns = data[1];
  const std::string_view json = as_text(data + kSizes, size - kSizes);
  auto blob = at::empty({static_cast<std::int64_t>(json.size())}, at::kByte);
  std::copy(json.begin(), json.end(), blob.mutable_data_ptr<std::uint8_t>());
  Tensors tensors;
  const auto type = data[5] & 1 ? bnb::QuantType::fp4 : bnb::QuantType::nf4;
  tensors.set(bnb::blob_name(type), blob);
  tensors.set("weight.absmax", filled(data[2], data[5] >> 1));
  if (!(data[5] & 16)) tensors.set("weight.quant_map", filled(16, 0));
  if (!(data[5] & 32)) tensors.set("weight.nested_absmax", filled(data[3], 0));
  if (!(data[5] & 64)) tensors.set("weight.nested_quant_map", filled(data[4] + 1, 0));
  accepts([&] {
    const auto state = bnb::read_quant_state(tensors, rows, columns);
    require(state.table.numel() == 16 && state.blocksize >= 32 &&
            state.absmax.numel() * state.blocksize >= rows * columns);
  });
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  std::mt19937 random(seed);
  std::string input(as_text(data, size));
  if (size < kSizes || most <= kSizes || random() % 4 == 0) {
    input = mutate_bytes(std::move(input), most);
  } else {
    input = input.substr(0, kSizes) + mutate_json(input.substr(kSizes), most - kSizes, random);
  }
  std::copy(input.begin(), input.end(), data);
  return input.size();
}
