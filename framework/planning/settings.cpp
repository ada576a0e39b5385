#include "planning/settings.h"

#include <algorithm>
#include <set>

#include "checkpoint/input_file.h"
#include "graft/error.h"
#include "plugins/call.h"

namespace graft {
namespace {

constexpr std::uint64_t kMaxSettingsBytes = 8U << 20;
constexpr const char* kMain = "config.json";

/// "bits (4 in config.json, 8 in quantize_config.json)" for each field that both have.
std::string differences(const Value& main, const Value& side, const std::string& side_name) {
  std::string out;
  for (const auto& [key, value] : side.as_object()) {
    const Value* other = main.find(key);
    if (!other || value.is_null() || same_settings(*other, value)) continue;
    out += (out.empty() ? "" : ", ") + key + " (" + to_json(*other) + " in " + kMain + ", " +
           to_json(value) + " in " + side_name + ")";
  }
  return out;
}

std::set<std::string> settings_files(const std::vector<Offer>& offers) {
  std::set<std::string> names;
  for (const auto& offer : offers)
    for (auto& name : call_plugin(offer.plugin, "names of settings files",
                                  [&] { return offer.quantizer->settings_files(); }))
      names.insert(std::move(name));
  return names;
}

void add_options_for_loading(const Quantizer& quantizer, const std::string& plugin,
                             std::set<std::string>& names) {
  for (const auto& option : call_plugin(plugin, "options", [&] { return quantizer.options(); }))
    if (option.for_loading) names.insert(option.name);
}

/// Fields of `given` that say how to run go into `settings`; the others lose.
void take_over(Value& settings, const Value& given, const Method& method, Settings& out) {
  std::set<std::string> for_loading;
  add_options_for_loading(*method.quantizer, method.plugin_id, for_loading);
  std::string lost;
  for (const auto& [key, value] : given.as_object()) {
    if (for_loading.contains(key)) {
      settings.set(key, value);
      continue;
    }
    const Value* own = settings.find(key);
    if (!own || !(*own == value)) lost += (lost.empty() ? "" : ", ") + key;
  }
  if (!lost.empty())
    out.notes.push_back(
        "the model brings its own quantization_config, which wins over the one given; not used: " +
        lost);
}

}  // namespace

bool same_settings(const Value& a, const Value& b) {
  if (!a.is_object() || !b.is_object()) return a == b;
  const auto& fields = a.as_object();
  return fields.size() == b.as_object().size() &&
         std::all_of(fields.begin(), fields.end(), [&](const auto& field) {
           const auto& others = b.as_object();
           const auto other = std::find_if(others.begin(), others.end(), [&](const auto& candidate) {
             return candidate.first == field.first;
           });
           return other != others.end() && same_settings(field.second, other->second);
         });
}

Value read_settings_file(const Checkpoint& checkpoint, const std::string& name) {
  const auto path = checkpoint.folder() / name;
  std::error_code error;
  if (checkpoint.config().is_null() || !std::filesystem::is_regular_file(path, error)) return {};
  const std::string text = InputFile(path).read_all(kMaxSettingsBytes);
  try {
    Value value = parse_json(text);
    if (!value.is_object())
      throw Error(ErrorKind::model, "the settings have the wrong form")
          .at("line 1")
          .expected("an object")
          .found(value.type_name());
    return value;
  } catch (Error& failed) {
    failed.at(path_text(path));
    throw;
  }
}

Settings find_settings(const Checkpoint& checkpoint, const LoadOptions& options,
                       const std::vector<Offer>& offers,
                       const std::function<Method(const Value&)>& find) {
  Settings out;
  const Value& given = options.quantization_config;
  if (!given.is_null() && !given.is_object())
    throw Error(ErrorKind::usage, "the quantization_config that was given cannot be used")
        .expected("an object")
        .found(to_json(given));
  const auto use_given = [&] {
    if (!given.is_object()) return out;
    std::set<std::string> for_loading;
    for (const auto& offer : offers)
      add_options_for_loading(*offer.quantizer, offer.plugin, for_loading);
    const auto& fields = given.as_object();
    if (std::all_of(fields.begin(), fields.end(),
                    [&](const auto& field) { return for_loading.contains(field.first); }))
      out.notes.emplace_back("options for quantized models are not used: the model is dense");
    else
      out.value = given;
    return out;
  };
  if (options.ignore_quantization_config) return use_given();
  const Value* in_file = quantization_config_of(checkpoint.config());
  if (in_file && !in_file->is_object())
    throw Error(ErrorKind::model, "the quantization_config cannot be used")
        .at((checkpoint.folder() / kMain).string())
        .expected("an object")
        .found(in_file->type_name());
  for (const auto& name : settings_files(offers)) {
    Value side = read_settings_file(checkpoint, name);
    if (!side.is_object()) continue;
    if (in_file) {
      if (const auto text = differences(*in_file, side, name); !text.empty())
        out.doubts.push_back(name + " and config.json disagree, config.json is used: " + text);
      continue;
    }
    for (const auto& offer : offers) {
      if (out.from_checkpoint || call_plugin(offer.plugin, name, [&] {
            return offer.quantizer->recognises(side);
          }) == 0)
        continue;
      if (given.is_object()) {
        out.doubts.emplace_back(name + " describes the model, but config.json does not; it is ignored "
                                    "because settings were given");
        break;
      }
      if (!side.find("quant_method")) side.set("quant_method", offer.method);
      out.value = side;
      out.from_checkpoint = true;
      out.notes.push_back("the settings are those of " + name + "; config.json has none");
    }
  }
  if (!in_file) return out.from_checkpoint ? out : use_given();
  out.value = *in_file;
  out.from_checkpoint = true;
  if (!given.is_object()) return out;
  const Method method = find(*in_file);
  const std::string asked = given.get_string("quant_method", "");
  if (!asked.empty() && asked != method.name)
    throw Error(ErrorKind::usage, "the model is quantized already, by another method")
        .at((checkpoint.folder() / kMain).string())
        .expected(quote(asked))
        .found(quote(method.name))
        .hint("dequantize it first, or give --ignore-quantization-config");
  take_over(out.value, given, method, out);
  return out;
}

}  // namespace graft
