#include "settings.h"

#include <set>

#include "graft/error.h"
#include "graft/tensors.h"

namespace graft::bnb {
namespace {

Error wrong(std::string_view field, const std::string& expected, const Value& found) {
  Error error(ErrorKind::model, "the quantization_config cannot be used");
  error.at("field " + quote(field)).expected(expected).found(to_json(found));
  error.hint("correct the field, or get the file that has it from its source again");
  return error;
}

at::ScalarType dtype_field(const Value& settings, std::string_view field,
                           std::string_view otherwise, const std::set<std::string_view>& allowed,
                           const std::string& expected) {
  std::string word = settings.get_string(field, otherwise);
  if (word.starts_with("torch.")) word.erase(0, 6);
  const auto type = allowed.contains(word) ? dtype_from_word(word) : std::nullopt;
  if (!type) throw wrong(field, expected, settings.at(field));
  return *type;
}

const char* word(QuantType type) { return type == QuantType::nf4 ? "nf4" : "fp4"; }

}  // namespace

std::shared_ptr<const BnbConfig> BnbConfig::parse(const Value& settings) {
  auto config = std::make_shared<BnbConfig>();
  config->source = settings;
  config->source.erase("graft_int8_forward");
  const std::string method = settings.get_string("quant_method", "bitsandbytes");
  const bool named_four = method.ends_with("_4bit"), named_eight = method.ends_with("_8bit");
  const bool four = settings.get_bool("load_in_4bit", named_four);
  const bool eight = settings.get_bool("load_in_8bit", named_eight);
  if (four && named_eight)
    throw wrong("quant_method", "bitsandbytes or bitsandbytes_4bit, because load_in_4bit is true",
                method);
  if (eight && named_four)
    throw wrong("quant_method", "bitsandbytes or bitsandbytes_8bit, because load_in_8bit is true",
                method);
  if (four && eight) throw wrong("load_in_8bit", "false, because load_in_4bit is true", true);
  if (!four && !eight && (settings.find("load_in_4bit") || settings.find("load_in_8bit")))
    throw wrong("load_in_4bit", "load_in_4bit or load_in_8bit to be true", false);
  config->bits = eight ? 8 : 4;
  const std::string type = settings.get_string("bnb_4bit_quant_type", "nf4");
  if (type != "nf4" && type != "fp4")
    throw wrong("bnb_4bit_quant_type", "nf4 or fp4", settings.at("bnb_4bit_quant_type"));
  config->type = type == "nf4" ? QuantType::nf4 : QuantType::fp4;
  config->double_quant = settings.get_bool("bnb_4bit_use_double_quant", false);
  config->compute_dtype =
      dtype_field(settings, "bnb_4bit_compute_dtype", "float32", {"float32", "float16", "bfloat16"},
                  "float32, float16 or bfloat16");
  config->storage = dtype_field(settings, "bnb_4bit_quant_storage", "uint8",
                                {"uint8", "int8", "float16", "bfloat16", "float32", "float64"},
                                "uint8, int8, float16, bfloat16, float32 or float64");
  config->threshold = settings.get_double("llm_int8_threshold", 6.0);
  if (!(config->threshold >= 0))
    throw wrong("llm_int8_threshold", "a number that is not negative",
                settings.at("llm_int8_threshold"));
  config->has_fp16_weight = settings.get_bool("llm_int8_has_fp16_weight", false);
  config->cpu_offload = settings.get_bool("llm_int8_enable_fp32_cpu_offload", false);
  const std::string forward = settings.get_string("graft_int8_forward", "llm_int8");
  if (forward != "llm_int8" && forward != "dequant")
    throw wrong("graft_int8_forward", "llm_int8 or dequant", settings.at("graft_int8_forward"));
  config->int8_forward = forward == "dequant" ? Int8Forward::dequant : Int8Forward::llm_int8;
  config->skip = settings.get_strings("llm_int8_skip_modules");
  static const std::set<std::string_view> kKnown{"_load_in_4bit",
                                                 "_load_in_8bit",
                                                 "bnb_4bit_compute_dtype",
                                                 "bnb_4bit_quant_storage",
                                                 "bnb_4bit_quant_type",
                                                 "bnb_4bit_use_double_quant",
                                                 "graft_int8_forward",
                                                 "llm_int8_enable_fp32_cpu_offload",
                                                 "llm_int8_has_fp16_weight",
                                                 "llm_int8_skip_modules",
                                                 "llm_int8_threshold",
                                                 "load_in_4bit",
                                                 "load_in_8bit",
                                                 "quant_method"};
  for (const auto& [key, value] : settings.as_object())
    if (!kKnown.contains(key)) config->unknown_fields.push_back(key);
  return config;
}

Value BnbConfig::describe() const {
  Value out;
  out.set("_load_in_4bit", bits == 4);
  out.set("_load_in_8bit", bits == 8);
  out.set("bnb_4bit_compute_dtype", std::string(dtype_word(compute_dtype)));
  out.set("bnb_4bit_quant_storage", std::string(dtype_word(storage)));
  out.set("bnb_4bit_quant_type", word(type));
  out.set("bnb_4bit_use_double_quant", double_quant);
  out.set("llm_int8_enable_fp32_cpu_offload", cpu_offload);
  out.set("llm_int8_has_fp16_weight", has_fp16_weight);
  out.set("llm_int8_skip_modules",
          skip.empty() ? Value() : Value(Value::Array(skip.begin(), skip.end())));
  out.set("llm_int8_threshold", threshold);
  out.set("load_in_4bit", bits == 4);
  out.set("load_in_8bit", bits == 8);
  out.set("quant_method", "bitsandbytes");
  for (const auto& [key, value] : source.as_object()) {
    // Null says nothing, and would beside a false say that there is neither.
    const bool undecided = key.starts_with("load_in_") && value.is_null();
    if (!undecided && (key != "bnb_4bit_quant_storage" || !other_storage)) out.set(key, value);
  }
  return out;
}

std::string BnbConfig::summary() const {
  if (bits == 8) return "int8 rows";
  return std::string(word(type)) + " b64" + (double_quant ? " double quant" : "");
}

}  // namespace graft::bnb
