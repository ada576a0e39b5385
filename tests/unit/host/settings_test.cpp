#include <doctest/doctest.h>

#include "edited_folder.h"

using namespace graft;
using namespace graft::test;

namespace {

const std::string kGptq = "vectors/tiny_llama_gptq4_v1";
const std::string kAwq = "vectors/tiny_llama_awq4_gemm";
const std::string kNf4 = "vectors/tiny_llama_bnb_nf4_dq";

/// Asserts the message for one field of the quantization_config set to a JSON text.
void refused(const std::string& golden, const std::string& field, const std::string& json,
             const std::vector<std::string>& words, ErrorKind kind = ErrorKind::model) {
  TestHost host;
  const EditedFolder folder(golden, [&](Value& config, RawTensors&) {
    settings_of(config).set(field, parse_json(json));
  });
  const std::string text = host.refusal(folder);
  MESSAGE(text);
  REQUIRE_FALSE(text.empty());
  CHECK(host.kind == kind);
  CHECK(contains(text, "; "));  // behind it stands what to do
  for (const auto& word : words) CHECK_MESSAGE(contains(text, word), "expected: " << word);
}

void loads(const std::string& golden, const std::string& field, const std::string& json) {
  TestHost host;
  const EditedFolder folder(golden, [&](Value& config, RawTensors&) {
    settings_of(config).set(field, parse_json(json));
  });
  CHECK(host.refusal(folder) == "");
}

std::string all_said(const Plan& plan) {
  std::string out;
  for (const auto* list : {&plan.notes, &plan.doubts, &plan.unmatched})
    for (const auto& line : *list) out += line + "\n";
  return out;
}

}  // namespace

TEST_CASE("impossible bits are refused with the possible ones") {
  for (const char* bits : {"5", "0", "-4", "1099511627776", "\"4\"", "4.0", "true"})
    refused(kGptq, "bits", bits, {"config.json", "'bits'", "2, 3, 4 or 8", bits});
  for (const char* bits : {"8", "5", "0", "-4", "1099511627776", "\"4\"", "4.0", "true"})
    refused(kAwq, "bits", bits, {"config.json", "'bits'", "expected 4", bits});
}

TEST_CASE("impossible group sizes are refused") {
  for (const char* size : {"0", "-2", "1", "2147483648", "\"128\"", "32.5"})
    for (const auto& golden : {kGptq, kAwq})
      refused(golden, "group_size", size, {"config.json", "'group_size'", "-1 (one group)", size});
}

TEST_CASE("a group larger than a row is one short group") {
  // 3 groups of 32 are in the file, so 128 contradicts the tensors: by shape, not by number.
  refused(kGptq, "group_size", "128", {"do not fit the model", "scales"});
}

TEST_CASE("null fields are defaults") {
  for (const char* field : {"modules_to_not_convert", "meta", "dynamic", "sym", "damp_percent",
                            "modules_in_block_to_quantize"})
    loads(kGptq, field, "null");
  loads(kNf4, "llm_int8_skip_modules", "null");
  loads(kAwq, "modules_to_not_convert", "null");
}

TEST_CASE("a missing sym means true, said aloud") {
  TestHost host;
  const EditedFolder folder(
      kGptq, [](Value& config, RawTensors&) { settings_of(config).erase("sym"); });
  REQUIRE(host.refusal(folder) == "");
  CHECK(contains(all_said(host.loaded->plan), "do not say sym; true is assumed"));
}

TEST_CASE("sym and zero_point that contradict each other are refused in GPTQ, ignored in AWQ") {
  refused(kGptq, "zero_point", "true",
          {"'sym'", "expected false, because zero_point is true, found true"});
  loads(kGptq, "zero_point", "false");
  loads(kAwq, "sym", "true");
}

TEST_CASE("aliases are read, and two names that contradict each other are refused") {
  TestHost host;
  const EditedFolder folder(kGptq, [](Value& config, RawTensors&) {
    auto& settings = settings_of(config);
    settings.erase("bits");
    settings.erase("group_size");
    settings.erase("checkpoint_format");
    settings.set("wbits", 4);
    settings.set("q_group_size", 32);
    settings.set("version", "gptq");
  });
  CHECK(host.refusal(folder) == "");
  refused(kGptq, "wbits", "8", {"'wbits'", "4, as 'bits' says", "8"});
  refused(kGptq, "format", "\"gptq_v2\"", {"'format'", "\"gptq\", as 'checkpoint_format' says"});
  refused(kAwq, "w_bit", "3", {"'w_bit'", "expected 4"});
  refused(kAwq, "q_group_size", "64", {"'q_group_size'", "32"});
}

TEST_CASE("layouts for one kernel are refused by name") {
  for (const char* format : {"\"marlin\"", "\"bitblas\"", "\"gptq_p\"", "\"x\""})
    refused(kGptq, "checkpoint_format", format, {"'checkpoint_format'", "gptq or gptq_v2", format});
  refused(kGptq, "format", "\"marlin\"", {"'format'", "gptq or gptq_v2", "one kernel"});
  refused(kGptq, "quant_method", "\"marlin\"", {"'quant_method'", "marlin", "one kernel"});
  for (const char* version : {"\"marlin\"", "\"ipex\"", "\"llm-awq\"", "7"})
    refused(kAwq, "version", version, {"'version'", "gemm, gemv or gemv_fast"});
  loads(kAwq, "version", "\"GEMM\"");
  loads(kAwq, "version", "\"exllama\"");
  refused(kGptq, "pack_dtype", "\"int64\"", {"'pack_dtype'", "int32"});
}

TEST_CASE("an unknown method is refused with what is installed and what is near") {
  refused(kGptq, "quant_method", "\"gtpq\"",
          {"no plugin claims the quantization method 'gtpq'", "awq, bitsandbytes, gptq",
           "did you mean 'gptq'"},
          ErrorKind::plugin);
  refused(kGptq, "quant_method", "\"hqq\"", {"'hqq'", "one of awq, bitsandbytes, gptq"},
          ErrorKind::plugin);
}

TEST_CASE("skip lists that cannot be meant are refused") {
  for (const auto& [golden, field] :
       {std::pair{kGptq, "modules_to_not_convert"}, std::pair{kAwq, "modules_to_not_convert"},
        std::pair{kNf4, "llm_int8_skip_modules"}}) {
    refused(golden, field, "\"lm_head\"", {field, "a list of texts", "\"lm_head\""});
    refused(golden, field, "\"\"", {field, "a list of texts"});
    refused(golden, field, "[[\"lm_head\"]]", {field, "a list of texts"});
    refused(golden, field, "[\"\"]", {field, "not empty"});
    refused(golden, field, "[1]", {field, "a list of texts"});
    loads(golden, field, "[\"lm_head\", \"(\"]");  // no expression: compared as text
  }
}

TEST_CASE("a skip entry with catastrophic repetition stops at a limit when a dense model is planned") {
  TestHost host;
  const EditedFolder folder("vectors/tiny_llama_dense_fp16", [](Value&, RawTensors&) {});
  LoadOptions options;
  options.quantization_config = parse_json(
      R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "llm_int8_skip_modules": ["(.+)+[!#]"]})");
  CHECK_THROWS_WITH_AS(host.host->load(folder.path(), options), doctest::Contains("takes too long"),
                       Error);
}

TEST_CASE("a skip entry that matches nothing is told with the nearest names") {
  TestHost host;
  const EditedFolder folder("vectors/tiny_llama_dense_fp16", [](Value&, RawTensors&) {});
  LoadOptions options;
  options.quantization_config = parse_json(
      R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "llm_int8_skip_modules": ["model.layers.0.mlp.up_prj"]})");
  const auto plan = host.host->plan(Checkpoint::open(folder.path()), options);
  CHECK(contains(all_said(plan), "'model.layers.0.mlp.up_prj' matches no module"));
  CHECK(contains(all_said(plan), "did you mean 'model.layers.0.mlp.up_proj'"));
}

TEST_CASE("dynamic takes the first match in the order of the file") {
  const auto plan_with = [](const std::string& dynamic) {
    TestHost host;
    const EditedFolder folder(kGptq, [&](Value& config, RawTensors&) {
      settings_of(config).set("dynamic", parse_json(dynamic));
    });
    return host.host->plan(Checkpoint::open(folder.path()));
  };
  // 8 bits do not fit the file; the rule before it keeps the module as it is.
  CHECK(plan_with(R"({"+:.*up_proj": {"bits": 4}, ".*up_proj": {"bits": 8}})").mismatched.empty());
  CHECK_FALSE(
      plan_with(R"({".*up_proj": {"bits": 8}, "+:.*up_proj": {"bits": 4}})").mismatched.empty());
  // Matches from the start of the name, not anchored at its end.
  CHECK(plan_with(R"({"up_proj": {"bits": 8}})").mismatched.empty());
  CHECK_FALSE(plan_with(R"({"model\\.layers\\.0": {"bits": 8}})").mismatched.empty());
  // The tensors decide against a rule that says dense.
  const auto plan = plan_with(R"({"-:.*up_proj": {}})");
  CHECK(plan.count(Action::quantize) == 14);
  CHECK(contains(all_said(plan), "the checkpoint is quantized: 2 module(s)"));
}

TEST_CASE("dynamic gives modules of AWQ groups of their own, and says what of it nobody uses") {
  TestHost host;
  LoadOptions options;
  options.quantization_config = parse_json(
      R"({"quant_method": "awq", "bits": 4, "group_size": 32,
          "dynamic": {"-:.*down_proj.*": {}, "+:.*up_proj.*": {"group_size": 64, "sym": true, "groupsize": 16}}})");
  const Plan plan = host.host->plan(
      Checkpoint::open(std::filesystem::path(GRAFT_TEST_DATA) / "vectors/tiny_llama_dense_fp16"),
      options);
  for (const auto& entry : plan.entries) {
    const auto& path = entry.spec.path;
    if (path.ends_with("down_proj")) CHECK(entry.action == Action::keep);
    if (path.ends_with("up_proj")) CHECK(contains(entry.settings, "4 bit g64"));
    if (path.ends_with("gate_proj")) CHECK(contains(entry.settings, "4 bit g32"));
  }
  CHECK(contains(all_said(plan), "nobody uses the field 'dynamic/+:.*up_proj.*/groupsize'"));
  CHECK(all_said(plan).find("/sym") == std::string::npos);
  refused(kAwq, "dynamic", R"({".*up_proj.*": {"bits": 8}})",
          {"field 'dynamic'", "'.*up_proj.*'", "expected 4", "8"});
  // The tensors of this file are in groups of 32.
  refused(kAwq, "dynamic", R"({".*up_proj.*": {"group_size": 64}})",
          {"do not fit the model", "up_proj"});
}

TEST_CASE("a misspelt field of a dynamic rule is told, and an error under strict") {
  const std::string rules = R"({"+:.*up_proj.*": {"bitz": 8}})";
  TestHost host;
  const EditedFolder folder(kGptq, [&](Value& config, RawTensors&) {
    settings_of(config).set("dynamic", parse_json(rules));
  });
  REQUIRE(host.refusal(folder) == "");
  CHECK(contains(all_said(host.loaded->plan), "'dynamic/+:.*up_proj.*/bitz'"));
  TestHost strict([](HostOptions& options) { options.strict = true; });
  CHECK(contains(strict.refusal(folder), "bitz"));
}

TEST_CASE("bitsandbytes_8bit means 8 bits, and a flag that says otherwise is refused") {
  TestHost host;
  LoadOptions options;
  options.quantization_config = parse_json(R"({"quant_method": "bitsandbytes_8bit"})");
  const auto dense = std::filesystem::path(GRAFT_TEST_DATA) / "vectors/tiny_llama_dense_fp16";
  CHECK(host.host->plan(Checkpoint::open(dense), options).settings == "int8 rows");
  refused(kNf4, "quant_method", R"("bitsandbytes_8bit")",
          {"'quant_method'", "because load_in_4bit is true", "bitsandbytes_8bit"});
  refused("vectors/tiny_llama_bnb_int8", "quant_method", R"("bitsandbytes_4bit")",
          {"'quant_method'", "because load_in_8bit is true", "bitsandbytes_4bit"});
}

TEST_CASE("settings that were given and cannot be used are an error of the call") {
  TestHost host;
  const auto dense = std::filesystem::path(GRAFT_TEST_DATA) / "vectors/tiny_llama_dense_fp16";
  for (const char* given : {R"("bitsandbytes")", "4", "[]", "true",
                            R"({"quant_method": "gptq", "bits": 5})"}) {
    LoadOptions options;
    options.quantization_config = parse_json(given);
    const auto error = thrown_by([&] { host.host->load(dense, options); });
    CHECK(error.kind() == ErrorKind::usage);
    CHECK(contains(error.what(), "cannot be used"));
  }
}

TEST_CASE("dynamic rules that cannot be used are refused") {
  refused(kGptq, "dynamic", "[1]", {"'dynamic'", "an object"});
  refused(kGptq, "dynamic", R"({"(": {}})", {"'dynamic'", "regular expression", "not valid"});
  refused(kGptq, "dynamic", R"({"a": {"bits": 7}})", {"'dynamic'", "'a'", "'bits'", "2, 3, 4 or 8"});
  refused(kGptq, "dynamic", R"({"a": 4})", {"'dynamic'", "object"});
  refused(kGptq, "dynamic", R"({"(.+)+[!#]": {}})", {"takes too long", "nested repetition"});
}

TEST_CASE("modules_in_block_to_quantize is a list of names or of lists") {
  loads(kGptq, "modules_in_block_to_quantize",
        R"([["self_attn.q_proj", "self_attn.k_proj"], ["mlp.up_proj"]])");
  loads(kGptq, "modules_in_block_to_quantize", R"(["self_attn.q_proj"])");
  refused(kGptq, "modules_in_block_to_quantize", R"("q_proj")",
          {"'modules_in_block_to_quantize'", "a list of names"});
}

TEST_CASE("a field that nobody uses is told, and an error under strict") {
  const auto edit = [](Value& config, RawTensors&) { settings_of(config).set("surprise", 1); };
  TestHost host;
  const EditedFolder folder(kGptq, edit);
  REQUIRE(host.refusal(folder) == "");
  CHECK(contains(all_said(host.loaded->plan), "nobody uses the field 'surprise'"));
  TestHost strict([](HostOptions& options) { options.strict = true; });
  CHECK(contains(strict.refusal(folder), "nobody uses the field 'surprise'"));
  CHECK(strict.kind == ErrorKind::model);
}

TEST_CASE("the settings of an old folder are in a file beside config.json") {
  const auto strip = [](Value& config, RawTensors&) { config.erase("quantization_config"); };
  const EditedFolder gptq(kGptq, strip);
  gptq.write("quantize_config.json",
             R"({"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": false, "sym": true})");
  TestHost host;
  REQUIRE(host.refusal(gptq) == "");
  CHECK(host.loaded->plan.method == "gptq");
  CHECK(host.loaded->plan.count(Action::quantize) == 14);
  CHECK(contains(all_said(host.loaded->plan), "quantize_config.json; config.json has none"));
  const EditedFolder awq(kAwq, strip);
  awq.write("quant_config.json",
            R"({"zero_point": true, "q_group_size": 32, "w_bit": 4, "version": "GEMM"})");
  REQUIRE(host.refusal(awq) == "");
  CHECK(host.loaded->plan.method == "awq");
  const EditedFolder broken(kGptq, strip);
  broken.write("quantize_config.json", "{\"bits\": 4,}");
  CHECK(contains(host.refusal(broken), "quantize_config.json: line 1"));
}

TEST_CASE("two config files that disagree: config.json is used, both are told, strict refuses") {
  const EditedFolder folder(kGptq, [](Value&, RawTensors&) {});
  folder.write("quantize_config.json", R"({"bits": 8, "group_size": 32, "desc_act": false})");
  TestHost host;
  REQUIRE(host.refusal(folder) == "");
  const auto said = all_said(host.loaded->plan);
  CHECK(contains(said, "bits (4 in config.json, 8 in quantize_config.json)"));
  CHECK_FALSE(contains(said, "group_size ("));
  TestHost strict([](HostOptions& options) { options.strict = true; });
  const auto refusal = strict.refusal(folder);
  CHECK(contains(refusal, "disagree"));
  CHECK(contains(refusal, "bits (4 in config.json, 8 in quantize_config.json)"));
}

TEST_CASE("settings given for a quantized model: the file wins, another method is refused") {
  const EditedFolder folder(kNf4, [](Value&, RawTensors&) {});
  TestHost host;
  LoadOptions options;
  options.quantization_config =
      parse_json(R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "fp4"})");
  const auto loaded = host.host->load(folder.path(), options);
  CHECK(loaded.quantization_config.at("bnb_4bit_quant_type").as_string() == "nf4");
  CHECK(contains(all_said(loaded.plan), "wins over the one given; not used: bnb_4bit_quant_type"));
  options.quantization_config = parse_json(R"({"quant_method": "gptq", "bits": 4})");
  CHECK_THROWS_WITH_AS(host.host->load(folder.path(), options),
                       doctest::Contains("quantized already, by another method"), Error);
}

TEST_CASE("fields of BitsAndBytesConfig are checked as the library checks them") {
  refused(kNf4, "load_in_8bit", "true", {"'load_in_8bit'", "load_in_4bit is true"});
  refused(kNf4, "load_in_4bit", "1", {"'load_in_4bit'", "bool"});
  refused(kNf4, "llm_int8_threshold", "\"6\"", {"'llm_int8_threshold'", "number"});
  refused(kNf4, "llm_int8_threshold", "-1", {"'llm_int8_threshold'", "not negative"});
  refused(kNf4, "bnb_4bit_quant_type", "\"nf5\"", {"'bnb_4bit_quant_type'", "nf4 or fp4"});
  refused(kNf4, "bnb_4bit_quant_storage", "\"int32\"", {"'bnb_4bit_quant_storage'", "uint8"});
  refused(kNf4, "bnb_4bit_compute_dtype", "\"int8\"", {"'bnb_4bit_compute_dtype'", "float32"});
  loads(kNf4, "bnb_4bit_compute_dtype", "\"torch.bfloat16\"");
}

TEST_CASE("an old bitsandbytes config without quant_method is recognised") {
  TestHost host;
  const EditedFolder folder(
      kNf4, [](Value& config, RawTensors&) { settings_of(config).erase("quant_method"); });
  CHECK(host.refusal(folder) == "");
}

TEST_CASE("llm_int8_has_fp16_weight keeps 16 bits in the file and multiplies in int8") {
  const EditedFolder folder("vectors/tiny_llama_dense_fp16", [](Value& config, RawTensors&) {
    config.set("quantization_config",
               parse_json(R"({"quant_method": "bitsandbytes", "load_in_8bit": true,
                              "llm_int8_has_fp16_weight": true,
                              "llm_int8_skip_modules": ["lm_head", "down_proj"]})"));
  });
  TestHost host;
  REQUIRE(host.refusal(folder) == "");
  CHECK(host.loaded->plan.count(Action::quantize) == 12);  // all but the head and two down_proj
  const auto out = folder.path() / ".." / (folder.path().filename().string() + "_saved");
  host.host->save(*host.loaded, out);
  const auto saved = Checkpoint::open(out), source = Checkpoint::open(folder.path());
  CHECK(saved.tensors().size() == source.tensors().size());
  const auto& info = saved.at("model.layers.0.mlp.up_proj.weight");
  CHECK(info.dtype == Dtype::F16);
  std::filesystem::remove_all(out);
}

TEST_CASE("a config that is no object, has a mark, a comma or too many bytes is refused with its line") {
  TestHost host;
  const auto with = [&](const std::string& text) {
    const EditedFolder folder(kGptq, [](Value&, RawTensors&) {});
    folder.write("config.json", text);
    return host.refusal(folder);
  };
  CHECK(contains(with("[]"), "config.json: line 1"));
  CHECK(contains(with("\xEF\xBB\xBF{}"), "byte order mark"));
  CHECK(contains(with("{\"a\": 1,\n}"), "line 2"));
  CHECK(contains(with(std::string(50'000'000, ' ')), "too large"));
  const EditedFolder folder(kGptq, [](Value&, RawTensors&) {});
  std::filesystem::remove(folder.path() / "config.json");
  CHECK(contains(host.refusal(folder), "config.json is missing"));
}

TEST_CASE("a head that is both tied and stored is told, and the tie is used") {
  const EditedFolder folder(kGptq, [](Value& config, RawTensors&) {
    config.set("tie_word_embeddings", true);
  });
  TestHost host;
  REQUIRE(host.refusal(folder) == "");
  CHECK(contains(all_said(host.loaded->plan), "ties it to 'model.embed_tokens.weight', which is used"));
}
