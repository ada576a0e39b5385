// Thousands of conversions and loads in one process: what they used is given back.

#include <malloc.h>

#include <filesystem>

#include "graft/host.h"

#include "model_folder.h"
#include "thrown_by.h"

using namespace graft;
namespace fs = std::filesystem;

namespace {

constexpr int kRounds = 2000, kWarmUp = 200;

struct Use {
  std::uint64_t heap, resident;
  long files;
};

Use use_now() {
  return {::mallinfo2().uordblks + ::mallinfo2().hblkhd, test::resident_bytes(),
          std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator())};
}

/// One load of a golden folder, one conversion with a save and a load of what was saved, or one
/// that fails.
void round(int i, const fs::path& folder) {
  static const std::vector<std::string> quantized{
      "vectors/tiny_llama_gptq4_v1", "vectors/tiny_llama_gptq4_v2_desc_act",
      "vectors/tiny_llama_awq4_gemm", "vectors/tiny_llama_bnb_nf4_dq", "vectors/tiny_llama_bnb_int8"};
  const Host host;
  if (i % 10 == 9) {
    LoadOptions options;
    options.quantization_config = parse_json(R"({"quant_method": "gptq", "bits": 5})");
    CHECK_THROWS_AS(host.load(test::golden("vectors/tiny_llama_dense_fp16"), options), Error);
  } else if (i % 2 == 0) {
    host.load(test::golden(quantized[static_cast<std::size_t>(i / 2) % quantized.size()]));
  } else {
    LoadOptions options;
    options.quantization_config = parse_json(
        i % 4 == 1 ? R"({"quant_method": "bitsandbytes", "load_in_4bit": true})"
                   : R"({"quant_method": "bitsandbytes", "load_in_8bit": true})");
    const auto loaded = host.load(test::golden("vectors/tiny_llama_dense_fp16"), options);
    WriteOptions write;
    write.overwrite = true;
    host.save(loaded, folder / "m", write);
    host.load(folder / "m");
  }
}

}  // namespace

TEST_CASE("two thousand conversions and loads leave memory and open files as they were") {
  const test::TemporaryFolder folder(test::in_memory());
  Use before{};
  for (int i = 0; i < kRounds; ++i) {
    round(i, folder.path());
    if (i == kWarmUp - 1) before = use_now();
  }
  const Use after = use_now();
  const auto grown = [](std::uint64_t from, std::uint64_t to) {
    return static_cast<std::int64_t>(to) - static_cast<std::int64_t>(from);
  };
  MESSAGE("rounds " << kWarmUp << " to " << kRounds << ": heap " << before.heap << " -> "
                    << after.heap << " bytes, resident " << before.resident << " -> "
                    << after.resident << ", open files " << before.files << " -> " << after.files);
  CHECK(after.files == before.files);
  CHECK(grown(before.heap, after.heap) < 256 << 10);
  CHECK(grown(before.resident, after.resident) < 16 << 20);
}
