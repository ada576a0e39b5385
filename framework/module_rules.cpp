#include "graft/module_rules.h"

#include <algorithm>
#include <map>
#include <set>

#include "graft/error.h"

namespace graft {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_word(char c) {
  return is_digit(c) || c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/// Of a name, or of a family when `any_number`; of all `below` it.
std::string pattern_of(const std::string& name, bool any_number, bool below) {
  std::string out = "^";
  for (const char c : name) {
    if (c == '#' && any_number)
      out += "\\d+";
    else
      out += is_word(c) ? std::string(1, c) : std::string("\\") + c;
  }
  return out + (below ? "\\." : "$");
}

}  // namespace

bool is_output_head(const std::string& name) {
  return name == "lm_head" || name.ends_with(".lm_head");
}

bool in_a_layer(const PlannedModule& module) {
  return family_of(module.names.front()).find(".#.") != std::string::npos;
}

std::string family_of(const std::string& name) {
  std::string out;
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t end = std::min(name.find('.', at), name.size());
    const bool number = end > at && std::all_of(name.begin() + static_cast<std::ptrdiff_t>(at),
                                                name.begin() + static_cast<std::ptrdiff_t>(end),
                                                is_digit);
    out += number ? "#" : name.substr(at, end - at);
    if (end < name.size()) out += '.';
    at = end + 1;
  }
  return out;
}

std::vector<NameRule> name_rules(std::span<const PlannedModule> modules,
                                 const std::function<Value(const PlannedModule&)>& wanted) {
  struct Family {
    std::vector<const PlannedModule*> members;
    std::vector<Value> what;  ///< of each
  };
  std::map<std::string, Family> families;
  std::vector<std::string> order;  // of the model, so that equal plans give equal rules
  for (const auto& module : modules) {
    const std::string name = family_of(module.names.front());
    auto& family = families[name];
    if (family.members.empty()) order.push_back(name);
    family.members.push_back(&module);
    family.what.push_back(wanted(module));
  }
  std::vector<NameRule> out;
  std::set<std::string> seen;
  const auto add = [&](std::string pattern, const Value& what) {
    if (seen.insert(pattern).second) out.push_back({std::move(pattern), what});
  };
  for (const auto& name : order) {
    const Family& family = families.at(name);
    // Below the same block of another layer there may be other modules.
    const bool alike =
        !family.members.front()->below &&
        std::all_of(family.what.begin(), family.what.end(),
                    [&](const Value& what) { return what == family.what.front(); });
    for (std::size_t i = 0; i < family.members.size(); ++i) {
      if (family.what[i].is_null()) continue;
      for (const auto& spelling : family.members[i]->names)
        add(pattern_of(alike ? family_of(spelling) : spelling, alike, family.members[i]->below),
            family.what[i]);
    }
  }
  return out;
}

std::vector<GivenRule> read_rules(const Value& rules,
                                  const std::function<void(const Value&)>& check) {
  const auto wrong = [](std::string_view expected, const Value& found) {
    return Error(ErrorKind::model, "wrong type")
        .expected(std::string(expected))
        .found(found.type_name())
        .hint("correct it there, or get the file from its source again");
  };
  if (!rules.is_object()) throw wrong("an object of patterns", rules);
  std::vector<GivenRule> out;
  for (const auto& [key, overrides] : rules.as_object()) {
    const bool skip = key.starts_with("-:");
    try {
      if (!overrides.is_object() && !overrides.is_null()) throw wrong("object", overrides);
      if (check) check(overrides);
      out.push_back({Regex(skip || key.starts_with("+:") ? key.substr(2) : key, ErrorKind::model),
                     skip, overrides});
    } catch (Error& error) {
      throw error.at("field " + quote(key));
    }
  }
  return out;
}

void add_unknown_overrides(const Value& rules, const std::set<std::string_view>& known,
                           std::vector<std::string>& unknown_fields) {
  for (const auto& [key, overrides] : rules.as_object())
    if (overrides.is_object())
      for (const auto& [field, value] : overrides.as_object())
        if (!known.contains(field))
          unknown_fields.push_back("dynamic/" + key + "/" + field);
}

const GivenRule* first_rule(const std::vector<GivenRule>& rules,
                            std::span<const std::string> names) {
  for (const auto& rule : rules)
    for (const auto& name : names)
      if (rule.name.match_start(name)) return &rule;
  return nullptr;
}

void require_whole_groups(const ModuleSpec& spec, std::int64_t group_size,
                          const std::vector<std::int64_t>& known) {
  const std::int64_t inputs = spec.in_features;
  if (group_size < 0) return;
  const bool whole = inputs % group_size == 0;
  if (whole && std::find(known.begin(), known.end(), group_size) != known.end()) return;
  std::string fitting = "-1";
  for (const auto size : known)
    if (inputs % size == 0) fitting += ", " + std::to_string(size);
  throw Error(ErrorKind::usage,
              whole ? "other readers of the method do not know groups of this size"
                    : "the last group would be short, which other readers of the method do not load")
      .expected("a group_size that " + std::to_string(inputs) + " inputs are a multiple of: " +
                fitting)
      .found(std::to_string(group_size))
      .hint("give another --group-size, or leave the module dense with --skip");
}

std::vector<std::string> skip_list(const std::vector<std::string>& given,
                                   std::span<const PlannedModule> modules, bool with_usual) {
  std::vector<std::string> names;
  for (const auto& module : modules)
    if (!module.config && (with_usual || !module.usual))
      names.insert(names.end(), module.names.begin(), module.names.end());
  std::vector<std::string> out;
  for (const auto& entry : given)
    if (std::none_of(names.begin(), names.end(), [&](const std::string& name) {
          return name.find(entry) != std::string::npos;
        }))
      out.push_back(entry);
  out.insert(out.end(), names.begin(), names.end());
  return out;
}

}  // namespace graft
