#include <algorithm>
#include <charconv>
#include <set>

#include "cli/program.h"

namespace graft::cli {
namespace {

Value value_of(const OptionSpec& option, const std::vector<std::string>& words) {
  if (option.otherwise.is_array()) return Value::Array(words.begin(), words.end());
  const std::string& word = words.back();
  const auto wrong = [&](const std::string& expected) {
    return Error(ErrorKind::usage, "wrong value")
        .at(option.flag)
        .expected(expected)
        .found(quote(word));
  };
  if (!option.choices.empty() &&
      std::find(option.choices.begin(), option.choices.end(), word) == option.choices.end()) {
    std::string choices;
    for (const auto& choice : option.choices) choices += (choices.empty() ? "" : ", ") + choice;
    throw wrong("one of " + choices);
  }
  switch (option.type) {
    case OptionSpec::Type::boolean:
      if (word == "true" || word == "1") return true;
      if (word == "false" || word == "0") return false;
      throw wrong("true or false");
    case OptionSpec::Type::integer: {
      std::int64_t number = 0;
      const auto [end, failed] = std::from_chars(word.data(), word.data() + word.size(), number);
      if (failed != std::errc{} || end != word.data() + word.size()) throw wrong("an integer");
      return number;
    }
    case OptionSpec::Type::number: {
      double number = 0;
      const auto [end, failed] = std::from_chars(word.data(), word.data() + word.size(), number);
      if (failed != std::errc{} || end != word.data() + word.size()) throw wrong("a number");
      return number;
    }
    case OptionSpec::Type::text:
      return word;
  }
  return word;
}

/// Words that are given go to `words`.
void add_option(CLI::App& verb, const OptionSpec& option, std::vector<std::string>& words,
                const std::string& group) {
  auto* added = verb.add_option(option.flag, words, option.help)->group(group);
  if (option.type == OptionSpec::Type::boolean)
    added->expected(0, 1)->default_str("true");
  else
    added->expected(1)->take_all();
  if (!option.choices.empty())
    added->type_name("{" + CLI::detail::join(option.choices, ",") + "}");
}

}  // namespace

void MethodOptions::collect(const Host& host) {
  for (const auto* library : host.plugins().libraries())
    for (const auto& claim : library->claims())
      if (const auto* quantizer = library->quantizer(claim.method)) {
        auto& known = methods_[claim.method];  // several plugins may serve a method
        for (auto& option : quantizer->options())
          if (std::none_of(known.begin(), known.end(),
                           [&](const OptionSpec& one) { return one.name == option.name; }))
            known.push_back(std::move(option));
      }
}

void MethodOptions::add_loading_to(CLI::App& verb, const Host& host) {
  collect(host);
  for (const auto& [method, options] : methods_)
    for (const auto& option : options)
      if (option.for_loading && !verb.get_option_no_throw(option.flag))
        add_option(verb, option, given_[option.flag], "Models of " + method);
}

Value MethodOptions::loading_settings() const {
  Value settings;
  for (const auto& [method, options] : methods_)
    for (const auto& option : options)
      if (const auto words = given_.find(option.flag);
          option.for_loading && words != given_.end() && !words->second.empty())
        settings.set(option.name, value_of(option, words->second));
  return settings;
}

void MethodOptions::add_to(CLI::App& verb, const Host& host) {
  collect(host);
  std::string names;
  for (const auto& [name, options] : methods_) names += (names.empty() ? "" : ", ") + name;
  verb.add_option("--method", method_,
                  "What to quantize with: " + (names.empty() ? "no plugin was found" : names));
  for (const auto& [method, options] : methods_)
    for (const auto& option : options) {
      if (option.flag.empty()) continue;
      if (auto* known = verb.get_option_no_throw(option.flag)) {
        known->description(known->get_description() + "; " + method + ": " + option.help);
        continue;
      }
      add_option(verb, option, given_[option.flag], "Options of " + method);
    }
}

bool MethodOptions::take(const std::string& flag, const std::string& word) {
  const auto words = given_.find(flag);
  if (words == given_.end() || words->second != std::vector{word}) return false;
  words->second.clear();
  return true;
}

Value MethodOptions::settings() const {
  std::set<std::string> flags;
  for (const auto& [flag, words] : given_)
    if (!words.empty()) flags.insert(flag);
  if (method_.empty()) {
    if (!flags.empty()) throw Error(ErrorKind::usage, *flags.begin() + " needs --method");
    return {};
  }
  const auto found = methods_.find(method_);
  if (found == methods_.end()) {
    std::vector<std::string> names;
    for (const auto& [name, options] : methods_) names.push_back(name);
    std::string list;
    for (const auto& name : names) list += (list.empty() ? "" : ", ") + name;
    throw Error(ErrorKind::usage, "unknown --method")
        .expected("one of " + list)
        .found(quote(method_))
        .hint("`graft plugins list` shows what was searched");
  }
  Value settings;
  settings.set("quant_method", method_);
  for (const auto& option : found->second) {
    if (!flags.erase(option.flag)) continue;
    const auto& words = given_.at(option.flag);
    const Value value = value_of(option, words);
    const Value* meaning =
        option.meaning.find(value.is_string() ? value.as_string() : to_json(value));
    if (!meaning) {
      settings.set(option.name, value);
      continue;
    }
    for (const auto& [key, part] : meaning->as_object()) settings.set(key, part);
  }
  if (!flags.empty())
    throw Error(ErrorKind::usage, *flags.begin() + " is no option of the method " + method_)
        .hint("`graft quantize --help` lists them by method");
  return settings;
}

}  // namespace graft::cli
