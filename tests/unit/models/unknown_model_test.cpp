#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include <fstream>

#include "folder.h"
#include "graft/host.h"

namespace graft::tests {
namespace {

/// The golden qwen3_moe under a model_type that nobody has.
void write_unknown(const std::filesystem::path& folder) {
  std::filesystem::create_directory(folder);
  std::filesystem::copy_file(golden("arch/qwen3_moe/model.safetensors"),
                             folder / "model.safetensors");
  Value config = Checkpoint::open(golden("arch/qwen3_moe")).config();
  config.set("model_type", "novel");
  std::ofstream(folder / "config.json") << to_json(config, 2);
}

}  // namespace

TEST_CASE("an unknown architecture is quantized from names and shapes, and can be checked") {
  const c10::InferenceMode guard;
  const Host host;
  const TemporaryFolder out;
  write_unknown(out.path() / "dense");
  LoadOptions options;
  options.quantization_config =
      parse_json(R"({"quant_method": "bitsandbytes", "load_in_4bit": true})");
  const auto made = host.load(out.path() / "dense", options);
  REQUIRE_FALSE(made.plan.notes.empty());
  CHECK(made.plan.notes.back().find("'novel'") != std::string::npos);
  CHECK(made.plan.unexpected.empty());
  CHECK(made.plan.bytes_taken() == made.checkpoint.total_bytes());
  // 2 layers of 4 attention matrices and 4 experts with 3 each.
  CHECK(made.plan.count(Action::quantize) == 2 * (4 + 4 * 3));
  for (const auto& entry : made.plan.entries)
    if (entry.action == Action::quantize)
      for (const char* dense : {"mlp.gate", "embed", "lm_head", "norm"})
        CHECK_FALSE((entry.spec.path + ".").find(std::string(dense) + ".") != std::string::npos);
  CHECK_THROWS_AS(forward(*made.model, at::zeros({1, 1}, at::kLong)), Error);

  host.save(made, out.path() / "nf4");
  LoadOptions check;
  check.structure = made.checkpoint;
  const auto again = host.load(out.path() / "nf4", check);
  CHECK(again.plan.count(Action::quantize) == 2 * (4 + 4 * 3));
  CHECK(again.plan.unexpected.empty());
  CHECK(again.plan.bytes_taken() == again.checkpoint.total_bytes());
  // It is the same conversion as that of the known architecture, tensor by tensor.
  const auto known = host.load(golden("arch/qwen3_moe"), options);
  host.save(known, out.path() / "known");
  const auto expected = Checkpoint::open(out.path() / "known");
  CHECK(again.checkpoint.tensors().size() == expected.tensors().size());
  for (const auto& info : expected.tensors()) {
    CAPTURE(info.name);
    CHECK(at::equal(read_tensor(out.path() / "nf4" / "model.safetensors", info.name),
                    read_tensor(out.path() / "known" / "model.safetensors", info.name)));
  }
}

TEST_CASE("an unknown architecture without a method is refused with what is known") {
  const Host host;
  const TemporaryFolder out;
  write_unknown(out.path() / "dense");
  CHECK_THROWS_WITH_AS(host.load(out.path() / "dense"), doctest::Contains("qwen3_moe"), Error);
}

}  // namespace graft::tests
