// What a folder's quantization_config says of single modules, for other programs to read.

#include "planning/written_settings.h"

#include <doctest/doctest.h>

#include <fstream>
#include <iterator>

#include "../calibrating/calibrated_model.h"
#include "graft/module_rules.h"
#include "graft/quantizer.h"
#include "thrown_by.h"

using namespace graft;
using namespace graft::test;

namespace {

/// For `folder` under `settings`, with a rule of the registry where one is given.
Value written(const fs::path& folder, const std::string& settings, const std::string& rule = "") {
  TestHost own;
  if (!rule.empty()) own.host->add_patch(rule);
  LoadOptions options;
  options.quantization_config = parse_json(settings);
  const Plan plan = own.host->plan(Checkpoint::open(folder), options);
  const auto* quantizer = quantizer_of(plan);
  REQUIRE(quantizer != nullptr);
  return written_settings(plan, *quantizer->parse(options.quantization_config));
}

std::string with(const std::string& settings, const std::string& more) {
  return settings.substr(0, settings.size() - 1) + ", " + more + "}";
}

bool lists(const Value& list, const std::string& name) {
  for (const auto& item : list.as_array())
    if (item == Value(name)) return true;
  return false;
}

const std::string kGptq = R"({"quant_method": "gptq", "bits": 4, "group_size": 32})";
const std::string kAwq = R"({"quant_method": "awq", "group_size": 32})";
const std::string kNf4 = R"({"quant_method": "bitsandbytes", "load_in_4bit": true})";
const std::string kKeep =
    R"({class: Linear, methods: "*", match: "*.1.self_attn.v_proj", keep: "by a rule"})";
const std::string kEight =
    R"({class: Linear, methods: "*", match: "*.down_proj", options: {bits: 8}})";

}  // namespace

TEST_CASE("a model whose modules are all quantized needs no list of them") {
  CHECK(written(kLlama, kGptq).find("dynamic") == nullptr);
  CHECK(written(kLlama, kGptq).find("modules_in_block_to_quantize") == nullptr);
  CHECK(written(kLlama, kAwq).find("dynamic") == nullptr);
  CHECK(written(kLlama, kAwq).find("modules_to_not_convert") == nullptr);
  CHECK(written(kLlama, kNf4).find("llm_int8_skip_modules") == nullptr);
}

TEST_CASE("modules that a list leaves dense are told to GPTQModel and to Transformers in their ways") {
  const auto settings = written(kLlama, with(kGptq, R"("modules_to_not_convert": ["o_proj"])"));
  CHECK(to_json(settings.at("dynamic")) ==
        R"({"-:^model\\.layers\\.\\d+\\.self_attn\\.o_proj$": {}})");
  CHECK(to_json(settings.at("modules_in_block_to_quantize")) ==
        R"([["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", )"
        R"("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]])");
}

TEST_CASE("a module that a rule keeps dense in one layer is told by its whole name") {
  const auto gptq = written(kLlama, kGptq, kKeep);
  CHECK(to_json(gptq.at("dynamic")) ==
        R"({"-:^model\\.layers\\.1\\.self_attn\\.v_proj$": {}})");
  const auto& names = gptq.at("modules_in_block_to_quantize").as_array().at(0);
  CHECK(lists(names, "self_attn.q_proj"));
  CHECK(lists(names, "model.layers.0.self_attn.v_proj"));
  CHECK(names.as_array().size() == 7);
  const auto awq = written(kLlama, kAwq, kKeep);
  CHECK(to_json(awq.at("modules_to_not_convert")) == R"(["model.layers.1.self_attn.v_proj"])");
  CHECK(awq.at("dynamic") == gptq.at("dynamic"));
}

TEST_CASE("what graft wrote of dense modules is what it reads") {
  const std::vector<std::string> dense{"model.layers.1.self_attn.v_proj"};
  const std::vector<std::string> other{"model.layers.0.self_attn.v_proj"};
  LoadOptions options;
  options.quantization_config = parse_json(kGptq);
  const Plan plan = host().host->plan(Checkpoint::open(kLlama), options);
  const auto config = quantizer_of(plan)->parse(written(kLlama, kGptq, kKeep));
  CHECK(config->for_module(dense) == nullptr);
  CHECK(config->for_module(other) == config);
}

TEST_CASE("rules for modules hold by any name that a checkpoint has for them") {
  LoadOptions options;
  options.quantization_config = parse_json(kGptq);
  const Plan plan = host().host->plan(Checkpoint::open(kLlama), options);
  const auto& quantizer = *quantizer_of(plan);
  const std::vector<std::string> names{"model.layers.0.mlp.experts.0.gate_proj",
                                       "model.layers.0.block_sparse_moe.experts.0.w1"};
  for (const auto& [field, found] :
       {std::pair{R"("dynamic": {"-:.*\\.w1$": {}})", false},
        std::pair{R"("modules_in_block_to_quantize": [["w1"]])", true},
        std::pair{R"("modules_in_block_to_quantize": [["w2"]])", false}}) {
    CAPTURE(field);
    CHECK((quantizer.parse(parse_json(with(kGptq, field)))->for_module(names) != nullptr) == found);
  }
}

TEST_CASE("a list of bitsandbytes names all that is dense, with the head that it otherwise implies") {
  const auto settings = written(kLlama, with(kNf4, R"("llm_int8_skip_modules": ["o_proj"])"));
  CHECK(to_json(settings.at("llm_int8_skip_modules")) ==
        R"(["o_proj", "model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj", )"
        R"("lm_head"])");
  CHECK(lists(written(kLlama, kNf4, kKeep).at("llm_int8_skip_modules"), "lm_head"));
  const auto with_head = written(kLlama, kNf4,
                                 R"({class: Linear, methods: "*", match: lm_head, plugin: org.graft.bnb})");
  CHECK(to_json(with_head.at("llm_int8_skip_modules")) == "[]");
}

TEST_CASE("experts that stay in one piece are told as all that other readers have below them") {
  const std::string skip = R"("modules_to_not_convert": ["model.layers.1"])";
  const auto moe = kGolden / "arch/qwen3_moe";
  const auto gptq = written(moe, with(kGptq, skip));
  CHECK(gptq.at("dynamic").find("-:^model\\.layers\\.1\\.mlp\\.experts\\.") != nullptr);
  const auto& names = gptq.at("modules_in_block_to_quantize").as_array().at(0);
  CHECK(lists(names, "model.layers.0.mlp.experts.0.up_proj"));
  CHECK_FALSE(lists(names, "up_proj"));
  CHECK(lists(written(moe, with(kAwq, skip)).at("modules_to_not_convert"),
              "model.layers.1.mlp.experts"));
  CHECK(lists(written(moe, with(kNf4, R"("llm_int8_skip_modules": ["model.layers.1"])"))
                  .at("llm_int8_skip_modules"),
              "model.layers.1.mlp.experts"));
}

TEST_CASE("routers are told to be dense, which older readers take for linear layers") {
  const std::string router = "model.layers.0.mlp.gate";
  const auto gptq = written(kMoe, kGptq);
  CHECK(gptq.at("dynamic").find("-:^model\\.layers\\.\\d+\\.mlp\\.gate$") != nullptr);
  const auto& names = gptq.at("modules_in_block_to_quantize").as_array().at(0);
  CHECK(lists(names, "up_proj"));
  CHECK_FALSE(lists(names, "mlp.gate"));
  CHECK(lists(written(kMoe, kAwq).at("modules_to_not_convert"), router));
  CHECK(lists(written(kMoe, kNf4).at("llm_int8_skip_modules"), router));
}

TEST_CASE("every name that a checkpoint has for a module gets its rule") {
  const PlannedModule module{{"model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"},
                             nullptr, false};
  LoadOptions options;
  options.quantization_config = parse_json(kGptq);
  const Plan plan = host().host->plan(Checkpoint::open(kLlama), options);
  const auto& quantizer = *quantizer_of(plan);
  const auto config = quantizer.parse(
      parse_json(with(kGptq, R"("dynamic": {"-:^model\\.layers": {}, "+:other": null})")));
  const auto dynamic = quantizer.describe_modules(*config, {&module, 1}).at("dynamic");
  REQUIRE(dynamic.as_object().size() == 4);
  CHECK(dynamic.as_object()[0].first == "-:^model\\.layers\\.\\d+\\.mlp\\.up_proj$");
  CHECK(dynamic.as_object()[1].first ==
        "-:^model\\.language_model\\.layers\\.\\d+\\.mlp\\.up_proj$");
  CHECK(dynamic.as_object()[2].first == "-:^model\\.layers");
  CHECK(to_json(dynamic.at("+:other")) == "{}");  // null stops GPTQModel
}

TEST_CASE("settings from elsewhere are written as what was made") {
  CHECK(written(kLlama, kGptq).at("checkpoint_format") == Value("gptq"));
  CHECK(written(kLlama, with(kGptq, R"("lm_head": true)")).at("lm_head") == Value(false));
  CHECK(written(kLlama, kGptq, R"({class: Linear, methods: "*", match: lm_head, plugin: org.graft.gptq})")
            .at("lm_head") == Value(true));
  CHECK(to_json(written(kLlama, with(kGptq, R"("modules_in_block_to_quantize": ["q_proj"])"))
                    .at("modules_in_block_to_quantize")) == R"([["self_attn.q_proj"]])");
  const auto one = written(kLlama, with(kGptq, R"("block_name_to_quantize": "model.layers.1")"));
  CHECK(one.at("dynamic").find("-:^model\\.layers\\.0\\.mlp\\.up_proj$") != nullptr);
  const auto awq = written(kLlama, with(kAwq, R"("dynamic": {"-:.*o_proj": {}})"));
  CHECK(to_json(awq.at("dynamic")) == R"({"-:^model\\.layers\\.\\d+\\.self_attn\\.o_proj$": {}})");
  CHECK(written(kLlama, with(kNf4, R"("llm_int8_skip_modules": [])")).find("llm_int8_skip_modules") ==
        nullptr);
}

TEST_CASE("a model of which nothing is quantized is saved as a dense one") {
  LoadOptions options;
  options.quantization_config = parse_json(with(kNf4, R"("llm_int8_skip_modules": ["model", "proj"])"));
  const auto made = host().host->load(kLlama, options);
  CHECK(made.plan.count(Action::quantize) == 0);
  const TemporaryFolder out;
  host().host->save(made, out.path() / "m");
  CHECK(Checkpoint::open(out.path() / "m").config().find("quantization_config") == nullptr);
}

TEST_CASE("another format is told by the settings file, too, whatever fields it had") {
  const EditedFolder folder("vectors/tiny_llama_gptq4_v1", [](Value& config, RawTensors&) {
    settings_of(config).erase("checkpoint_format");
    settings_of(config).erase("format");
  });
  folder.write("quantize_config.json", R"({"bits": 4, "group_size": 32, "desc_act": false})");
  auto loaded = host().host->load(folder.path());
  const TemporaryFolder out;
  const auto side = [&](const char* name) {
    host().host->save(loaded, out.path() / name);
    std::ifstream in(out.path() / name / "quantize_config.json");
    return parse_json(std::string(std::istreambuf_iterator<char>(in), {}));
  };
  CHECK(side("same").find("checkpoint_format") == nullptr);
  host().host->set_format(loaded, "gptq_v2");
  CHECK(side("other").at("checkpoint_format") == Value("gptq_v2"));
}

TEST_CASE("towers, which are written dense, are told to readers that look beyond the layers") {
  const EditedFolder folder("vectors/tiny_llama_dense_fp16", [](Value&, RawTensors& tensors) {
    tensors["vision_tower.layers.0.fc.weight"] = tensors.at("model.layers.0.self_attn.o_proj.weight");
  });
  CHECK(to_json(written(folder.path(), kNf4).at("llm_int8_skip_modules")) ==
        R"(["lm_head", "vision_tower", "model.vision_tower"])");
  const auto awq = written(folder.path(), kAwq);
  CHECK(to_json(awq.at("modules_to_not_convert")) == R"(["vision_tower", "model.vision_tower"])");
  CHECK(awq.find("dynamic") == nullptr);
  CHECK(written(folder.path(), kGptq).find("dynamic") == nullptr);
}

TEST_CASE("options of a rule become rules of the settings where the method has them") {
  CHECK(to_json(written(kLlama, kGptq, kEight).at("dynamic")) ==
        R"({"+:^model\\.layers\\.\\d+\\.mlp\\.down_proj$": {"bits": 8}})");
  CHECK(written(kLlama, kGptq, kEight).find("modules_in_block_to_quantize") == nullptr);
  const auto nf4 = written(kLlama, kNf4, R"({class: Linear, methods: "*", match: "*.down_proj",
                                            options: {bnb_4bit_use_double_quant: true}})");
  CHECK(nf4.at("bnb_4bit_use_double_quant") == Value(false));
}

TEST_CASE("options of a rule that the method's files cannot say are told by the plan") {
  for (const auto& [settings, rule, word] :
       {std::tuple{kAwq, R"({class: Linear, methods: "*", match: "*.down_proj",
                             options: {group_size: 16}})", "settings of its own"},
        std::tuple{kNf4, R"({class: Linear, methods: "*", match: "*.down_proj",
                             options: {load_in_4bit: false, load_in_8bit: true}})",
                   "cannot say"},
        std::tuple{kGptq, R"({class: Linear, methods: "*", match: "*.down_proj",
                              options: {checkpoint_format: gptq_v2}})",
                   "one format of zero points"}}) {
    CAPTURE(settings);
    TestHost own;
    own.host->add_patch(rule);
    LoadOptions options;
    options.quantization_config = parse_json(settings);
    const Plan plan = own.host->plan(Checkpoint::open(kLlama), options);
    std::string notes;
    for (const auto& note : plan.notes) notes += note + "\n";
    CHECK(contains(notes, "cannot be saved: "));
    CHECK(contains(notes, word));
    CHECK(contains(notes, "model.layers.0.mlp.down_proj"));
    CHECK(contains(notes, "leave"));
    if (settings != kNf4) {
      options.calibration = random_ids(kLlama, 1, 8);
      CHECK_THROWS_WITH_AS(own.host->load(kLlama, options), doctest::Contains(word), Error);
    } else {  // runs all the same
      CHECK_THROWS_WITH_AS(
          own.host->save(own.host->load(kLlama, options), TemporaryFolder().path() / "m"),
          doctest::Contains(word), Error);
    }
  }
}

TEST_CASE("a folder with rules for modules loads again, and writes them as they were") {
  TestHost own;
  own.host->add_patch(kKeep);
  own.host->add_patch(kEight);
  LoadOptions options;
  options.quantization_config = parse_json(kGptq);
  options.calibration = random_ids(kLlama, 2, 16);
  options.dtype = at::kFloat;
  const auto made = own.host->load(kLlama, options);
  const TemporaryFolder out;
  own.host->save(made, out.path() / "m");
  const Value config = Checkpoint::open(out.path() / "m").config().at("quantization_config");
  CHECK(config.at("dynamic").as_object().size() == 2);
  TestHost plain;
  LoadOptions again;
  again.dtype = at::kFloat;
  const auto loaded = plain.host->load(out.path() / "m", again);
  CHECK(loaded.plan.count(Action::quantize) == 13);
  for (const auto& note : loaded.plan.notes) CHECK(note.find("dense") == std::string::npos);
  const auto ids = random_ids(kLlama, 1, 12);
  CHECK(logits(loaded, ids).equal(logits(made, ids)));
  plain.host->save(loaded, out.path() / "again");
  CHECK(Checkpoint::open(out.path() / "again").config().at("quantization_config") == config);
}

TEST_CASE("groups that other readers do not load are refused with the sizes that would do") {
  for (const auto& [settings, words] :
       {std::pair{R"({"quant_method": "gptq", "group_size": 128})",
                  std::vector<std::string>{"model.layers.0.self_attn.q_proj", "short",
                                           "64 inputs are a multiple of: -1, 16, 32, 64",
                                           "found 128", "--group-size", "--skip"}},
        std::pair{R"({"quant_method": "gptq", "group_size": 8})",
                  std::vector<std::string>{"do not know groups of this size", "-1, 16, 32, 64"}},
        std::pair{R"({"quant_method": "awq", "group_size": 128})",
                  std::vector<std::string>{"short", "-1, 16, 32, 64"}},
        std::pair{R"({"quant_method": "gptq", "bits": 3, "group_size": 7})",
                  std::vector<std::string>{"short"}}}) {
    CAPTURE(settings);
    LoadOptions options;
    options.quantization_config = parse_json(settings);
    try {
      const Plan plan = host().host->plan(Checkpoint::open(kLlama), options);
      CHECK(plan.unportable.size() >= 12);
      plan.check(false);
      FAIL("was let through");
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::usage);
      for (const auto& word : words) CHECK(contains(error.what(), word));
    }
  }
  ModuleSpec spec;
  spec.in_features = 48;
  CHECK_THROWS_AS(require_whole_groups(spec, 48, {16}), Error);  // all of a row, but no known size
  require_whole_groups(spec, -1, {16});
  require_whole_groups(spec, 16, {16});
}

TEST_CASE("codes that do not fill words are refused, because other readers take words for whole") {
  const EditedFolder folder("vectors/tiny_llama_dense_fp16", [](Value& config, RawTensors& tensors) {
    config.set("num_key_value_heads", 1);  // 16 outputs of k_proj and v_proj
    for (auto& [name, tensor] : tensors)
      if (contains(name, "k_proj") || contains(name, "v_proj")) {
        tensor.bytes->resize(tensor.bytes->size() / 2);
        tensor.shape[0] /= 2;
      }
  });
  LoadOptions options;
  options.quantization_config =
      parse_json(R"({"quant_method": "gptq", "bits": 3, "group_size": 32})");
  const Plan three = host().host->plan(Checkpoint::open(folder.path()), options);
  CHECK(three.unportable.size() == 4);
  CHECK_THROWS_WITH_AS(three.check(false), doctest::Contains("multiples of 32"), Error);
  options.quantization_config.set("bits", 4);
  CHECK(host().host->plan(Checkpoint::open(folder.path()), options).unportable.empty());
}

TEST_CASE("patterns of names share what differs in numbers alone, and match nothing else") {
  CHECK(family_of("model.layers.12.mlp.experts.3.up_proj") == "model.layers.#.mlp.experts.#.up_proj");
  CHECK(family_of("layer1.2x.3") == "layer1.2x.#");
  std::vector<PlannedModule> modules;
  for (const char* name : {"a.0.x", "a.1.x", "a.0.y", "a.1.y", "a.1.x+z"})
    modules.push_back({{name}, nullptr, false});
  const auto rules = name_rules(modules, [](const PlannedModule& module) {
    const auto& name = module.names.front();
    return name.ends_with("x") || name == "a.1.y" || name == "a.1.x+z" ? Value(static_cast<int>(name.size()))
                                                                       : Value();
  });
  REQUIRE(rules.size() == 3);
  CHECK(rules[0].pattern == R"(^a\.\d+\.x$)");
  CHECK(rules[1].pattern == R"(^a\.1\.y$)");
  CHECK(rules[2].pattern == R"(^a\.\d+\.x\+z$)");
}

TEST_CASE("a skip list keeps what it was given that names none of the modules") {
  const std::vector<PlannedModule> modules{{{"a.0.q", "b.0.q"}, nullptr, false},
                                           {{"head"}, nullptr, true}};
  CHECK(skip_list({"q", "tower"}, modules, false) ==
        std::vector<std::string>{"tower", "a.0.q", "b.0.q"});
  CHECK(skip_list({}, modules, true) == std::vector<std::string>{"a.0.q", "b.0.q", "head"});
}
