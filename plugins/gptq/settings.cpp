#include "settings.h"

#include <algorithm>
#include <array>
#include <set>

#include "graft/error.h"
#include "graft/module_rules.h"

namespace graft::gptq {
namespace {

constexpr std::int64_t kLargestGroup = std::int64_t{1} << 20;

Error wrong(std::string_view field, const std::string& expected, const Value& found) {
  Error error(ErrorKind::model, "the quantization_config cannot be used");
  error.at("field " + quote(field)).expected(expected).found(to_json(found));
  error.hint("correct the field, or get the file that has it from its source again");
  return error;
}

/// The field under its name or an alias. Two of them that contradict each other are refused.
const Value* find_alias(const Value& settings, std::initializer_list<std::string_view> names,
                        std::string* which = nullptr) {
  const Value* found = nullptr;
  std::string_view found_as;
  for (const auto name : names) {
    const Value* here = settings.find(name);
    if (!here) continue;
    if (found && !(*found == *here)) {
      Error error(ErrorKind::model, "the quantization_config contradicts itself");
      throw error.at("field " + quote(name))
          .expected(to_json(*found) + ", as " + quote(found_as) + " says")
          .found(to_json(*here))
          .hint("make both fields equal");
    }
    if (!found) found = here, found_as = name;
  }
  if (which) *which = found_as;
  return found;
}

void read_bits(const Value& settings, int& bits) {
  std::string name;
  const Value* found = find_alias(settings, {"bits", "w_bit", "wbits"}, &name);
  if (!found) return;
  const std::int64_t number = found->is_int() ? found->as_int() : 0;
  if (number != 2 && number != 3 && number != 4 && number != 8)
    throw wrong(name, "2, 3, 4 or 8", *found);
  bits = static_cast<int>(number);
}

void read_group_size(const Value& settings, std::int64_t& group_size) {
  std::string name;
  const Value* found = find_alias(settings, {"group_size", "q_group_size"}, &name);
  if (!found) return;
  const std::int64_t number = found->is_int() ? found->as_int() : 0;
  if (number != -1 && (number < 2 || number > kLargestGroup))
    throw wrong(name, "-1 (one group) or 2 to " + std::to_string(kLargestGroup), *found);
  group_size = number;
}

/// AWQ's zero_point is the opposite of sym; GPTQModel accepts it here.
void read_sym(const Value& settings, GptqConfig& config) {
  const Value* zero_point = settings.find("zero_point");
  if (zero_point && !zero_point->is_bool()) throw wrong("zero_point", "true or false", *zero_point);
  if (zero_point) config.sym = !zero_point->as_bool();
  const bool sym = settings.get_bool("sym", config.sym);
  if (zero_point && settings.find("sym") && sym != config.sym)
    throw wrong("sym", to_json(Value(config.sym)) + ", because zero_point is " + to_json(*zero_point),
                settings.at("sym"))
        .hint("remove one of the two");
  config.sym = sym;
  if (zero_point || settings.find("sym")) config.names_its_zeros = true;
}

GptqConfig::Format read_format(const Value& settings) {
  constexpr std::string_view kExpected = "gptq or gptq_v2";
  for (const char* name : {"checkpoint_format", "format", "version"}) {
    const Value* found = settings.find(name);
    const std::string text = found && found->is_string() ? found->as_string() : "";
    if (text == "marlin" || text == "bitblas" || text == "gptq_p")
      throw wrong(name, std::string(kExpected), *found)
          .hint("the layout of " + text +
                " is made for one kernel; ask the publisher for the gptq files, or save the model "
                "again as gptq with GPTQModel");
  }
  std::string name;
  const Value* found = find_alias(settings, {"checkpoint_format", "format", "version"}, &name);
  if (!found) return GptqConfig::Format::v1;
  const std::string text = found->is_string() ? found->as_string() : "";
  if (text == "gptq") return GptqConfig::Format::v1;
  if (text == "gptq_v2") return GptqConfig::Format::v2;
  throw wrong(name, std::string(kExpected), *found);
}

/// AutoGPTQ and old optimum name themselves, or GPTQModel does.
bool writer_is_autogptq(const Value& settings) {
  const Value* meta = settings.find("meta");
  const Value* writer = meta ? meta->find("quantizer") : nullptr;
  if (!writer) return false;
  std::string names;
  if (writer->is_string()) names = writer->as_string();
  if (writer->is_array())
    for (const auto& name : writer->as_array())
      if (name.is_string()) names += name.as_string() + " ";
  std::transform(names.begin(), names.end(), names.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  const auto says = [&](const char* name) { return names.find(name) != std::string::npos; };
  return !says("gptqmodel") && (says("auto_gptq") || says("autogptq") || says("auto-gptq"));
}

/// A list of names, or a list of such lists as optimum writes it.
std::vector<std::string> read_in_block(const Value& settings) {
  constexpr std::string_view kField = "modules_in_block_to_quantize";
  std::vector<std::string> out;
  const Value* found = settings.find(kField);
  if (!found) return out;
  const auto add = [&](const Value& name) {
    if (!name.is_string() || name.as_string().empty())
      throw wrong(kField, "a list of names, or of lists of names", *found);
    out.push_back(name.as_string());
  };
  if (!found->is_array()) throw wrong(kField, "a list of names, or of lists of names", *found);
  for (const auto& item : found->as_array()) {
    if (!item.is_array()) {
      add(item);
      continue;
    }
    for (const auto& name : item.as_array()) add(name);
  }
  return out;
}

/// modules_in_block_to_quantize: ends of the names of all that is quantized and of nothing else.
Value names_in_block(std::span<const PlannedModule> modules) {
  std::set<std::string> families;  // with a dense module
  std::vector<std::string> dense, blocks;
  for (const auto& module : modules)
    if (!module.config)
      for (const auto& name : module.names) {
        families.insert(family_of(name));
        dense.push_back(name);
        if (module.below) blocks.push_back(family_of(name) + ".");
      }
  const auto apart = [&](const std::string& family, const std::string& end) {
    return !families.contains(family) && end.find('#') == std::string::npos &&
           std::none_of(dense.begin(), dense.end(),
                        [&](const auto& name) { return name.ends_with(end); }) &&
           std::none_of(blocks.begin(), blocks.end(),
                        [&](const auto& block) { return family.starts_with(block); });
  };
  Value::Array names;
  std::set<std::string> seen;
  for (const auto& module : modules) {
    if (!module.config || !in_a_layer(module)) continue;
    for (const auto& name : module.names) {
      const std::string family = family_of(name);
      const auto number = family.rfind(".#.");
      const std::string end = number == std::string::npos ? "" : family.substr(number + 3);
      const std::string& said = !end.empty() && apart(family, end) ? end : name;
      if (seen.insert(said).second) names.emplace_back(said);
    }
  }
  return Value(Value::Array{Value(std::move(names))});
}

/// Of a rule of `dynamic`: read by apply(), or of making the files alone.
const std::set<std::string_view>& known_overrides() {
  static const std::set<std::string_view> kKnown{
      "bits", "w_bit", "wbits", "group_size", "q_group_size", "sym", "zero_point", "desc_act",
      "pack_dtype", "static_groups", "act_group_aware", "true_sequential", "damp_percent",
      "damp_auto_increment", "mse"};
  return kKnown;
}

const std::set<std::string_view>& known_fields() {
  static const std::set<std::string_view> kKnown{
      // Read.
      "bits", "w_bit", "wbits", "group_size", "q_group_size", "sym", "zero_point", "desc_act",
      "static_groups", "lm_head", "checkpoint_format", "format", "version", "pack_dtype",
      "modules_in_block_to_quantize", "block_name_to_quantize", "modules_to_not_convert", "dynamic",
      "meta", "quant_method", "method",
      // Of making the files, or of other programs' kernels.
      "true_sequential", "damp_percent", "damp_auto_increment", "act_group_aware", "mse",
      "model_seqlen", "tokenizer", "dataset", "batch_size", "pad_token_id", "max_input_length",
      "cache_block_outputs", "module_name_preceding_first_block", "backend", "use_exllama",
      "exllama_config", "disable_exllama", "use_cuda_fp16", "is_marlin_format",
      "model_name_or_path", "model_file_base_name", "quantizer"};
  return kKnown;
}

}  // namespace

const char* word(GptqConfig::Format format) {
  return format == GptqConfig::Format::v1 ? "gptq" : "gptq_v2";
}

std::shared_ptr<const GptqConfig> GptqConfig::parse(const Value& settings) {
  auto config = std::make_shared<GptqConfig>();
  config->source_ = settings;
  const std::string method = settings.get_string("quant_method", "gptq");
  if (method != "gptq") {
    Error error = wrong("quant_method", "gptq", settings.at("quant_method"));
    error.hint("the layout of " + quote(method) +
               " is made for one kernel; ask the publisher for the gptq files, or save the model "
               "again as gptq with GPTQModel");
    throw error;
  }
  if (settings.get_bool("is_marlin_format", false))
    throw wrong("is_marlin_format", "false, because the layout is made for one kernel", true);
  config->apply(settings);
  config->format = read_format(settings);
  config->static_groups = settings.get_bool("static_groups", false);
  if (const Value* damping = settings.find("damp_percent"); damping && !damping->is_null())
    config->damping = settings.get_double("damp_percent", config->damping);
  config->lm_head = settings.get_bool("lm_head", false);
  config->unmasked_zeros = writer_is_autogptq(settings);
  config->skip = settings.get_strings("modules_to_not_convert");
  config->block_ = settings.get_string("block_name_to_quantize", "");
  config->in_block_ = read_in_block(settings);
  if (const Value* rules = settings.find("dynamic")) {
    try {
      config->dynamic_ = read_rules(*rules, [&](const Value& overrides) {
        GptqConfig variant = *config;
        variant.apply(overrides);  // so that a mistake is found before a module matches
      });
    } catch (Error& error) {
      throw error.at("field 'dynamic'");
    }
  }
  for (const auto& [key, value] : settings.as_object())
    if (!known_fields().contains(key)) config->unknown_fields.push_back(key);
  if (const Value* rules = settings.find("dynamic"))
    add_unknown_overrides(*rules, known_overrides(), config->unknown_fields);
  return config;
}

void GptqConfig::apply(const Value& overrides) {
  if (!overrides.is_object()) return;
  read_bits(overrides, bits);
  read_group_size(overrides, group_size);
  read_sym(overrides, *this);
  desc_act = overrides.get_bool("desc_act", desc_act);
  if (const Value* pack = overrides.find("pack_dtype"))
    if (!(*pack == Value("int32"))) throw wrong("pack_dtype", "int32", *pack);
}

bool GptqConfig::in_block(std::span<const std::string> names) const {
  return std::any_of(names.begin(), names.end(), [&](const std::string& name) {
    if (is_output_head(name)) return true;
    return name.starts_with(block_) &&
           (in_block_.empty() ||
            std::any_of(in_block_.begin(), in_block_.end(),
                        [&](const auto& end) { return name.ends_with(end); }));
  });
}

std::shared_ptr<const QuantConfig> GptqConfig::for_module(
    std::span<const std::string> names) const {
  if (const auto* rule = first_rule(dynamic_, names)) {
    if (rule->skip) return nullptr;
    if (!rule->overrides.is_object() || rule->overrides.as_object().empty())
      return shared_from_this();
    auto variant = std::make_shared<GptqConfig>(*this);
    variant->apply(rule->overrides);
    return variant;
  }
  return in_block(names) ? shared_from_this() : nullptr;
}

std::shared_ptr<const GptqConfig> GptqConfig::with_format(Format other) const {
  auto copy = std::make_shared<GptqConfig>(*this);
  copy->read_as = read_as.value_or(format);
  copy->format = other;
  return copy;
}

Value GptqConfig::describe() const {
  Value out = source_;
  bool has_format = false;
  for (const char* name : {"checkpoint_format", "format", "version"})
    if (out.find(name)) {
      out.set(name, word(format));
      has_format = true;
    }
  if (!has_format && (format == Format::v2 || source_.is_null()))
    out.set("checkpoint_format", word(format));
  if (!out.find("quant_method")) out.set("quant_method", "gptq");
  if (!out.find("bits")) out.set("bits", bits);
  if (!out.find("group_size")) out.set("group_size", group_size);
  if (!out.find("sym")) out.set("sym", sym);  // other readers take it for true where it is absent
  if (!out.find("desc_act")) out.set("desc_act", desc_act);
  return out;
}

Value GptqConfig::rule_wanted(const PlannedModule& module) const {
  // Each reader knows one of the names, so every one has to be said.
  const auto said_of_all = [&](const auto& says) {
    return std::all_of(module.names.begin(), module.names.end(), [&](const std::string& name) {
      return says(first_rule(dynamic_, {&name, 1}));
    });
  };
  if (!module.config) {
    const bool known =
        module.usual || !in_a_layer(module) ||
        said_of_all([](const GivenRule* rule) { return rule && rule->skip; });
    return known ? Value() : Value(false);
  }
  const auto& wanted = dynamic_cast<const GptqConfig&>(*module.config);
  if (wanted.format != format)
    throw Error(ErrorKind::usage, "a file has one format of zero points")
        .at(module.names.front())
        .expected(word(format))
        .found(word(wanted.format))
        .hint("leave checkpoint_format out of the options of the rule");
  if (said_of_all([&](const GivenRule* rule) {
        GptqConfig said = *this;
        if (rule) said.apply(rule->overrides);
        return !(rule && rule->skip) && wanted.bits == said.bits &&
               wanted.group_size == said.group_size && wanted.sym == said.sym &&
               wanted.desc_act == said.desc_act;
      }))
    return {};
  Value own(Value::Object{});
  if (wanted.bits != bits) own.set("bits", wanted.bits);
  if (wanted.group_size != group_size) own.set("group_size", wanted.group_size);
  if (wanted.sym != sym) own.set("sym", wanted.sym);
  if (wanted.desc_act != desc_act) own.set("desc_act", wanted.desc_act);
  return own;
}

Value GptqConfig::describe_modules(std::span<const PlannedModule> modules) const {
  Value out = describe();
  bool has_format = false;
  for (const char* name : {"checkpoint_format", "format", "version"})
    has_format |= out.find(name) != nullptr;
  if (!has_format) out.set("checkpoint_format", word(format));
  const auto rules =
      name_rules(modules, [&](const PlannedModule& module) { return rule_wanted(module); });
  // Matched from the start alone, and the first that matches decides.
  Value all(Value::Object{});
  for (const auto& rule : rules)
    all.set((rule.what.is_bool() ? "-:" : "+:") + rule.pattern,
            rule.what.is_bool() ? Value(Value::Object{}) : rule.what);
  if (const Value* given = out.find("dynamic"))
    for (const auto& [key, overrides] : given->as_object())
      if (!all.find(key)) all.set(key, overrides.is_null() ? Value(Value::Object{}) : overrides);
  if (!all.as_object().empty()) out.set("dynamic", std::move(all));
  bool dense = false, head = false, right = true;
  for (const auto& module : modules) {
    head |= module.config && is_output_head(module.names.front());
    if (!in_a_layer(module) || module.usual) continue;
    dense |= !module.config;
    right = right && in_block({module.names.data(), 1}) == (module.config != nullptr);
  }
  if (head || out.find("lm_head")) out.set("lm_head", head);
  const Value* given = out.find("modules_in_block_to_quantize");
  const bool nested = given && !given->as_array().empty() && given->as_array().front().is_array();
  if (!right || (!nested && (dense || !in_block_.empty())))
    out.set("modules_in_block_to_quantize", names_in_block(modules));
  return out;
}

std::string GptqConfig::summary() const {
  return std::to_string(bits) + " bit g" +
         (group_size < 0 ? std::string("all") : std::to_string(group_size)) +
         (sym ? " sym" : " asym") + (desc_act ? " desc_act" : "") +
         (format == Format::v1 ? ", format gptq (v1)" : ", format gptq_v2");
}

}  // namespace graft::gptq
