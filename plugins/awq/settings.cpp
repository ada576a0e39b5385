#include "settings.h"

#include <algorithm>
#include <optional>
#include <set>

#include "graft/error.h"

namespace graft::awq {
namespace {

constexpr std::int64_t kLargestGroup = std::int64_t{1} << 20;
constexpr const char* kVersionFields[] = {"version", "format", "checkpoint_format"};

Error wrong(std::string_view field, const std::string& expected, const Value& found) {
  Error error(ErrorKind::model, "the quantization_config cannot be used");
  error.at("field " + quote(field)).expected(expected).found(to_json(found));
  error.hint("correct the field, or get the file that has it from its source again");
  return error;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return text;
}

/// The integer field under its name or an alias.
std::optional<std::int64_t> integer(const Value& settings, std::string_view name,
                                    std::string_view alias, const std::string& expected) {
  std::optional<std::int64_t> out;
  for (const auto key : {name, alias})
    if (const Value* found = settings.find(key)) {
      if (!found->is_int()) throw wrong(key, expected, *found);
      if (out && *out != found->as_int())
        throw wrong(key, std::to_string(*out) + ", as " + quote(name) + " says", *found);
      out = found->as_int();
    }
  return out;
}

AwqConfig::Version read_version(const Value& settings) {
  std::optional<AwqConfig::Version> out;
  for (const char* field : kVersionFields) {
    const Value* found = settings.find(field);
    if (!found) continue;
    const std::string text = found->is_string() ? lower(found->as_string()) : "";
    AwqConfig::Version version{};
    if (text == "gemm" || text == "exllama")  // exllama repacks GEMM tensors in memory only
      version = AwqConfig::Version::gemm;
    else if (text == "gemv")
      version = AwqConfig::Version::gemv;
    else if (text == "gemv_fast")
      version = AwqConfig::Version::gemv_fast;
    else
      throw wrong(field, "gemm, gemv or gemv_fast", *found)
          .hint("other layouts are made for one kernel; ask the publisher for the gemm files");
    if (out && *out != version)
      throw wrong(field, word(*out), *found).hint("make the fields for the layout equal");
    out = version;
  }
  return out.value_or(AwqConfig::Version::gemm);
}

const std::set<std::string_view>& known_fields() {
  static const std::set<std::string_view> kKnown{
      // Read.
      "bits", "w_bit", "group_size", "q_group_size", "zero_point", "version", "format",
      "checkpoint_format", "modules_to_not_convert", "quant_method", "method", "pack_dtype",
      // Of making the files, of other programs' kernels, or inherited from GPTQ settings.
      "backend", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config", "sym",
      "desc_act", "lm_head", "meta", "damp_percent", "true_sequential", "static_groups", "dynamic",
      "tokenizer", "dataset", "block_name_to_quantize", "module_name_preceding_first_block",
      "batch_size", "pad_token_id", "max_input_length", "cache_block_outputs",
      "modules_in_block_to_quantize", "model_seqlen", "act_group_aware", "use_exllama",
      "disable_exllama"};
  return kKnown;
}

}  // namespace

const char* word(AwqConfig::Version version) {
  switch (version) {
    case AwqConfig::Version::gemm:
      return "gemm";
    case AwqConfig::Version::gemv:
      return "gemv";
    case AwqConfig::Version::gemv_fast:
      return "gemv_fast";
  }
  return "";
}

void AwqConfig::apply(const Value& settings) {
  if (!settings.is_object()) return;
  if (integer(settings, "bits", "w_bit", "4").value_or(4) != 4)
    throw wrong(settings.find("bits") ? "bits" : "w_bit", "4",
                *(settings.find("bits") ? settings.find("bits") : settings.find("w_bit")));
  const std::string groups =
      "-1 (one group) or 2 to " + std::to_string(kLargestGroup);
  if (const auto size = integer(settings, "group_size", "q_group_size", groups)) {
    if (*size != -1 && (*size < 2 || *size > kLargestGroup))
      throw wrong(settings.find("group_size") ? "group_size" : "q_group_size", groups, *size);
    group_size = *size;
  }
  zero_point = settings.get_bool("zero_point", zero_point);
  if (const Value* pack = settings.find("pack_dtype"))
    if (!(*pack == Value("int32"))) throw wrong("pack_dtype", "int32", *pack);
}

std::shared_ptr<const AwqConfig> AwqConfig::parse(const Value& settings) {
  auto config = std::make_shared<AwqConfig>();
  config->source_ = settings;
  config->apply(settings);
  config->version = config->read_as = read_version(settings);
  config->skip = settings.get_strings("modules_to_not_convert");
  if (const Value* rules = settings.find("dynamic")) {
    try {
      config->dynamic_ = read_rules(*rules, [&](const Value& overrides) {
        AwqConfig variant = *config;
        variant.apply(overrides);  // so that a mistake is found before a module matches
      });
    } catch (Error& error) {
      throw error.at("field 'dynamic'");
    }
  }
  for (const auto& [key, value] : settings.as_object())
    if (!known_fields().contains(key)) config->unknown_fields.push_back(key);
  if (const Value* rules = settings.find("dynamic"))
    add_unknown_overrides(*rules,
                          {"bits", "w_bit", "group_size", "q_group_size", "zero_point", "pack_dtype",
                           "sym", "desc_act", "static_groups", "act_group_aware",
                           "true_sequential", "damp_percent", "damp_auto_increment", "mse"},
                          config->unknown_fields);
  return config;
}

Value AwqConfig::describe() const {
  Value out = source_;
  bool has_version = false;
  for (const char* field : kVersionFields)
    if (out.find(field)) {
      if (version != read_as) out.set(field, word(version));
      has_version = true;
    }
  if (!has_version) out.set("version", word(version));
  if (!out.find("quant_method")) out.set("quant_method", "awq");
  if (!out.find("bits")) out.set("bits", 4);
  if (!out.find("group_size")) out.set("group_size", group_size);
  if (!out.find("zero_point")) out.set("zero_point", zero_point);
  return out;
}

std::shared_ptr<const QuantConfig> AwqConfig::for_module(
    std::span<const std::string> names) const {
  const auto* rule = first_rule(dynamic_, names);
  if (rule && rule->skip) return nullptr;
  if (!rule || !rule->overrides.is_object() || rule->overrides.as_object().empty())
    return shared_from_this();
  auto variant = std::make_shared<AwqConfig>(*this);
  variant->apply(rule->overrides);
  return variant;
}

std::string AwqConfig::summary() const {
  return std::string("4 bit g") + (group_size < 0 ? "all" : std::to_string(group_size)) +
         (zero_point ? " asym, " : " sym, ") + word(version);
}

}  // namespace graft::awq
