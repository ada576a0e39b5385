#include <filesystem>
#include <set>

#include "edited_folder.h"
#include "model_folder.h"

using namespace graft;
using namespace graft::test;
namespace fs = std::filesystem;

TEST_CASE("what goes with a model is saved with it, and nothing of its former weights and settings") {
  TestHost test;
  const EditedFolder folder("vectors/tiny_llama_dense_fp16", [](Value&, RawTensors&) {});
  for (const char* name :
       {"tokenizer.json", "preprocessor_config.json", "LICENSE", "modeling_own.py",
        "1_Pooling/config.json", "config_sentence_transformers.json"})
    folder.write(name, name);
  for (const char* name :
       {"pytorch_model.bin", "pytorch_model.bin.index.json", "quantize_config.json", "README.md",
        "graft-report.json", ".gitattributes", "onnx/model.onnx", "original/params.json"})
    folder.write(name, "{}");
  folder.write("modules.json", R"([{"path": ""}, {"path": "1_Pooling"}, {"path": "3_link"}])");
  folder.write("2_Other/config.json", "{}");
  const TemporaryFolder elsewhere;
  elsewhere.write("secret", "x");
  fs::create_directory_symlink(elsewhere.path(), folder.path() / "3_link");
  fs::create_symlink(elsewhere.path() / "secret", folder.path() / "notes.txt");
  fs::create_symlink(folder.path() / "LICENSE", folder.path() / "NOTICE");
  const TemporaryFolder out;
  test.host->save(test.host->load(folder.path()), out.path() / "m");
  std::set<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(out.path() / "m"))
    if (entry.is_regular_file())
      names.insert(fs::relative(entry.path(), out.path() / "m").string());
  CHECK(names == std::set<std::string>{"1_Pooling/config.json", "LICENSE", "NOTICE", "config.json",
                                       "config_sentence_transformers.json", "model.safetensors",
                                       "modeling_own.py", "modules.json",
                                       "preprocessor_config.json",
                                       "tokenizer.json"});
}

TEST_CASE("a module's folder is copied with links into the cache, and not with links elsewhere") {
  TestHost test;
  const TemporaryFolder cache, elsewhere;
  const fs::path model = cache.path() / "snapshots/0123";
  fs::create_directories(model / "1_Pooling");
  for (const char* name : {"config.json", "model.safetensors"})
    fs::copy_file(golden("vectors/tiny_llama_dense_fp16") / name, model / name);
  cache.write("snapshots/0123/modules.json", R"([{"path": "1_Pooling"}, {"path": "2_Dense"}])");
  cache.write("blobs/0a", "pooling");
  fs::create_symlink("../../../blobs/0a", model / "1_Pooling/config.json");
  fs::create_directories(model / "2_Dense");
  elsewhere.write("secret", "x");
  fs::create_symlink(elsewhere.path() / "secret", model / "2_Dense/config.json");
  const TemporaryFolder out;
  test.host->save(test.host->load(model), out.path() / "m");
  CHECK(read_file(out.path() / "m/1_Pooling/config.json") == "pooling");
  CHECK(!fs::exists(out.path() / "m/2_Dense"));
}
