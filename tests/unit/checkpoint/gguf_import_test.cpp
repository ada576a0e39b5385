#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <vector>

#include "gguf_bytes.h"
#include "graft/error.h"
#include "graft/gguf.h"

using namespace graft;
using namespace graft::test;
namespace fs = std::filesystem;

namespace {

/// A folder of its own that goes with the test.
struct Folder {
  fs::path path = fs::temp_directory_path() / ("graft-gguf-" + std::to_string(::getpid()));
  Folder() {
    fs::remove_all(path);
    fs::create_directory(path);
  }
  ~Folder() { fs::remove_all(path); }

  fs::path write(const GgufBytes& file) const {
    std::ofstream(path / "model.gguf", std::ios::binary) << file.file();
    return path / "model.gguf";
  }
};

std::vector<float> values(const Checkpoint& checkpoint, const char* name) {
  const TensorInfo& info = checkpoint.at(name);
  std::vector<float> out(info.bytes / sizeof(float));
  checkpoint.read(info, out.data());
  return out;
}

}  // namespace

TEST_CASE("import makes a model folder, rows of q and k in the order of Transformers") {
  const Folder folder;
  GgufImportOptions options;
  options.dtype = Dtype::F32;
  const auto result = import_gguf(folder.write(small_llama()), folder.path / "out", options);
  CHECK(result.architecture == "llama");
  CHECK(result.tensors == 11);
  const auto checkpoint = Checkpoint::open(folder.path / "out");
  CHECK(checkpoint.tensors().size() == 11);
  CHECK(checkpoint.config().get_string("dtype", "") == "float32");
  for (const char* name : {"generation_config.json", "tokenizer.json", "tokenizer_config.json"})
    CHECK(fs::exists(folder.path / "out" / name));
  // Each head of 4 rows a, b, c, d is a, c, b, d.
  const auto q = values(checkpoint, "model.layers.0.self_attn.q_proj.weight");
  std::vector<float> starts;
  for (std::size_t row = 0; row < 8; ++row) starts.push_back(q[row * 8]);
  CHECK((starts == std::vector<float>{100, 116, 108, 124, 132, 148, 140, 156}));
  CHECK(q[9] == 117);
  const auto v = values(checkpoint, "model.layers.0.self_attn.v_proj.weight");
  CHECK(v[8] == 308);
}

TEST_CASE("biases of q and k change places with their rows") {
  const Folder folder;
  GgufImportOptions options;
  options.dtype = Dtype::F32;
  auto file = small_llama();
  file.tensor("blk.0.attn_q.bias", {8}, 0)
      .tensor("blk.0.attn_k.bias", {4}, 0)
      .tensor("blk.0.attn_v.bias", {4}, 0)
      .tensor("blk.0.attn_output.bias", {8}, 0);
  import_gguf(folder.write(file), folder.path / "out", options);
  const auto checkpoint = Checkpoint::open(folder.path / "out");
  CHECK(checkpoint.config().get_bool("attention_bias", false));
  CHECK((values(checkpoint, "model.layers.0.self_attn.q_proj.bias") ==
         std::vector<float>{0, 2, 1, 3, 4, 6, 5, 7}));
}

TEST_CASE("weights that are not finite, or not as the dtype, are refused and nothing is left") {
  const Folder folder;
  const auto imported = [&](float weight, Dtype dtype) {
    auto file = small_llama();
    file.tensors[4].data.replace(4, 4, le(weight));
    GgufImportOptions options;
    options.dtype = dtype;
    const auto path = folder.write(file);
    const auto text = refusal([&] { import_gguf(path, folder.path / "out", options); });
    CHECK(fs::exists(folder.path / "out") == text.empty());
    fs::remove_all(folder.path / "out");
    return text;
  };
  const float infinity = std::numeric_limits<float>::infinity();
  for (const Dtype dtype : {Dtype::BF16, Dtype::F16, Dtype::F32}) {
    CHECK(imported(1, dtype) == "");
    CHECK(contains(imported(infinity, dtype),
                   "tensor 'blk.0.attn_k.weight': a weight is not finite"));
    CHECK(contains(imported(std::numeric_limits<float>::quiet_NaN(), dtype), "not finite"));
  }
  CHECK(contains(imported(70000, Dtype::F16), "too large for F16"));
  CHECK(imported(70000, Dtype::BF16) == "");
  CHECK(contains(imported(std::numeric_limits<float>::max(), Dtype::BF16), "too large for BF16"));
}

TEST_CASE("errors of import name the file and leave nothing behind") {
  const Folder folder;
  const auto out = folder.path / "out";
  const auto place = folder.path.string() + "/model.gguf: ";
  auto file = folder.write(small_llama().text("tokenizer.ggml.pre", "viking"));
  CHECK(refusal([&] { import_gguf(file, out); }).starts_with(place));
  folder.write(small_llama());
  fs::resize_file(file, fs::file_size(file) - 64);
  CHECK(refusal([&] {
          import_gguf(file, out);
        }).starts_with(place + "tensor 'blk.0.ffn_down.weight'"));
  CHECK(contains(refusal([&] { import_gguf(folder.path / "none.gguf", out); }), "none.gguf"));
  CHECK(contains(refusal([&] { import_gguf(folder.path, out); }), "not a regular file"));
  GgufImportOptions options;
  options.dtype = Dtype::I8;
  CHECK(contains(refusal([&] { import_gguf(file, out, options); }), "expected BF16, F16 or F32"));
  CHECK_FALSE(fs::exists(out));
}
