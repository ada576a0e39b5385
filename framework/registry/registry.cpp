#include "registry/registry.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <tuple>

#include "graft/error.h"
#include "registry/patch_file.h"

namespace graft {
namespace {

bool names_method(const Rule& rule, const std::string& method) {
  return std::any_of(rule.methods.begin(), rule.methods.end(),
                     [&](const std::string& name) { return name == "*" || name == method; });
}

bool matches(const Rule& rule, const std::string& path) {
  try {
    return !rule.match || rule.match->matches(path);
  } catch (Error& error) {
    throw error.at(rule.origin.text());
  }
}

/// Rules by a key and by method. "*" stands for every method. Looking up takes no time to speak of,
/// however many rules there are.
template <class Key>
class RulesByMethod {
 public:
  void add(const Key& key, const Rule& rule) {
    auto& methods = rules_[key];
    methods.emplace("", &rule);  // the first of all
    for (const auto& method : rule.methods) methods.emplace(method, &rule);
  }
  /// One that has the key and a method in common with `rule`, or nullptr.
  const Rule* find(const Key& key, const Rule& rule) const {
    const auto found = rules_.find(key);
    if (found == rules_.end()) return nullptr;
    const auto& methods = found->second;
    for (const auto& method : rule.methods)
      for (const auto& name : {method == "*" ? std::string() : method, std::string("*")})
        if (const auto it = methods.find(name); it != methods.end()) return it->second;
    return nullptr;
  }

 private:
  std::map<Key, std::map<std::string, const Rule*>> rules_;
};

/// Refuses two rules of one file about the same modules.
void check_contradictions(const std::vector<Rule>& rules) {
  RulesByMethod<std::tuple<std::string, Tier, std::string, std::string, std::string>> seen;
  for (const auto& rule : rules) {
    const std::tuple target(rule.origin.file, rule.tier, rule.module_class, rule.device,
                            rule.match ? "=" + rule.match->text() : std::string());
    if (const Rule* other = seen.find(target, rule))
      throw Error(ErrorKind::plugin, "two rules of one file decide about the same modules: " +
                                         other->origin.text() + " and " + rule.origin.text())
          .hint("remove one of them");
    seen.add(target, rule);
  }
}

/// Refuses replacements that go in a circle, or on and on.
void check_circles(const std::vector<Rule>& rules) {
  constexpr std::size_t kMostSteps = 100;
  RulesByMethod<std::string> replacing;
  for (const auto& rule : rules)
    if (!rule.replacement.empty()) replacing.add(rule.module_class, rule);
  for (const auto& start : rules) {
    std::set<std::string> seen{start.module_class};
    std::string at = start.replacement;
    while (!at.empty()) {
      if (!seen.insert(at).second)
        throw Error(ErrorKind::plugin, "replacements go in a circle through the class " + quote(at))
            .at(start.origin.text());
      if (seen.size() > kMostSteps)
        throw Error(ErrorKind::plugin, "replacements are replaced in turn without an end")
            .at(start.origin.text())
            .expected("at most " + std::to_string(kMostSteps) + " steps");
      const Rule* next = replacing.find(at, start);
      at = next ? next->replacement : "";
    }
  }
}

auto rank(const Rule& rule) {
  return std::tuple(rule.specificity(), rule.tier, rule.origin.file, rule.origin.line);
}

}  // namespace

Specificity Rule::specificity() const {
  if (match) return match->specificity();
  return module_class == "*" ? Specificity::any : Specificity::class_name;
}

bool Rule::outranks(const Rule& other) const { return rank(*this) > rank(other); }

Decision Registry::decide(const Query& query) const {
  Decision decision;
  decision.resolved_class = query.module_class;
  if (const auto alias = aliases_.find(query.module_class); alias != aliases_.end())
    decision.resolved_class = alias->second;

  std::vector<const Rule*> fitting;
  for (const auto& rule : rules_) {
    const bool same_class = rule.module_class == "*" || rule.module_class == query.module_class ||
                            rule.module_class == decision.resolved_class;
    if (!same_class || !matches(rule, query.path)) continue;
    if (!names_method(rule, query.method))
      decision.losers.push_back({rule.origin.text(), "it is not for the method " + query.method});
    else if (!rule.device.empty() && rule.device != query.device)
      decision.losers.push_back({rule.origin.text(), "it is for the device " + rule.device});
    else
      fitting.push_back(&rule);
  }
  std::sort(fitting.begin(), fitting.end(),
            [](const Rule* a, const Rule* b) { return a->outranks(*b); });
  for (std::size_t i = 1; i < fitting.size(); ++i)
    decision.losers.push_back(
        {fitting[i]->origin.text(), fitting[i]->specificity() < fitting[0]->specificity()
                                        ? "less specific than " + fitting[0]->origin.text()
                                        : "overruled by " + fitting[0]->origin.text()});
  if (!fitting.empty()) {
    decision.rule = *fitting.front();
    decision.options = decision.rule->options;
    if (decision.rule->keep) {
      decision.kind = Decision::Kind::keep;
      decision.reason = *decision.rule->keep + " (" + decision.rule->origin.text() + ")";
    }
  }
  const bool kept = decision.kind == Decision::Kind::keep;

  const Rule* rule = decision.rule ? &*decision.rule : nullptr;
  const auto priority = [&](const ClaimRow& claim) {
    return rule && rule->priority && (rule->plugin.empty() || rule->plugin == claim.plugin_id)
               ? *rule->priority
               : claim.priority;
  };
  for (const auto& claim : claims_) {
    if (claim.method != query.method || claim.module_class != decision.resolved_class) continue;
    if (claim.device != query.device)
      decision.losers.push_back(
          {claim.plugin_id, "it claims the class on the device " + claim.device});
    else if (rule && !rule->plugin.empty() && !rule->priority && rule->plugin != claim.plugin_id)
      decision.losers.push_back({claim.plugin_id, rule->origin.text() + " pins " + rule->plugin});
    else
      decision.claims.push_back(claim);
  }
  std::stable_sort(decision.claims.begin(), decision.claims.end(),
                   [&](const ClaimRow& a, const ClaimRow& b) { return priority(a) > priority(b); });
  if (kept) {
    // A checkpoint may hold the module quantized all the same; then the claims can load it.
    for (const auto& claim : decision.claims)
      decision.losers.push_back(
          {claim.plugin_id, decision.rule->origin.text() + " keeps the module dense"});
    return decision;
  }
  if (rule && !rule->replacement.empty()) {
    decision.kind = Decision::Kind::replace;
    decision.reason = rule->origin.text();
    return decision;
  }
  if (decision.claims.empty()) {
    decision.reason = rule && !rule->plugin.empty()
                          ? rule->origin.text() + " pins " + rule->plugin +
                                ", which is not loaded or does not claim the class "
                          : "no plugin claims the class ";
    decision.reason += query.module_class + " for " + query.method + " on " + query.device;
    return decision;
  }
  if (decision.claims.size() > 1 && priority(decision.claims[0]) == priority(decision.claims[1])) {
    const auto &a = decision.claims[0], &b = decision.claims[1];
    throw Error(ErrorKind::plugin, "two plugins claim the class " + a.module_class + " for " +
                                       query.method + " on " + query.device +
                                       " equally: " + a.plugin_file + " and " + b.plugin_file)
        .at(query.path)
        .hint("decide with a registry line such as {class: " + a.module_class + ", methods: [" +
              query.method + "], plugin: " + a.plugin_id + "}");
  }
  decision.kind = Decision::Kind::claims;
  decision.reason = rule ? rule->origin.text() : "claimed by " + decision.claims.front().plugin_id;
  return decision;
}

std::vector<std::string> Registry::unmatched_rules(const std::vector<std::string>& paths) const {
  constexpr std::size_t kMostSuggestions = 100;  // each looks at every path
  std::vector<std::string> out;
  for (const auto& rule : rules_) {
    // Installed rules and those of plugins are written for every model.
    if (!rule.match || rule.tier < Tier::user) continue;
    if (std::any_of(paths.begin(), paths.end(),
                    [&](const std::string& path) { return matches(rule, path); }))
      continue;
    std::string text =
        rule.origin.text() + ": the pattern " + quote(rule.match->text()) + " matches no module";
    if (out.size() < kMostSuggestions)
      if (const auto near = nearest_names(rule.match->text(), paths); !near.empty())
        text += "; did you mean " + near + "?";
    out.push_back(std::move(text));
  }
  return out;
}

SkipNames Registry::skip_names(const std::vector<std::string>& settings) const {
  std::vector<std::string> all = skips_;
  all.insert(all.end(), settings.begin(), settings.end());
  return SkipNames(std::move(all));
}

void Registry::Builder::add_claims(const std::vector<ClaimRow>& claims) {
  registry_.claims_.insert(registry_.claims_.end(), claims.begin(), claims.end());
}

void Registry::Builder::add_file(const std::filesystem::path& file, Tier tier) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error))
    throw Error(ErrorKind::plugin, "no such registry file").at(quote(file.string()));
  std::ifstream in(file, std::ios::binary);
  std::string text(kMaxPatchFileBytes + 1, '\0');  // one more than allowed: enough to refuse it
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad() || (in.fail() && !in.eof()))
    throw Error(ErrorKind::resource, "the registry file cannot be read").at(quote(file.string()));
  text.resize(static_cast<std::size_t>(in.gcount()));
  add_text(text, file.string(), tier);
}

void Registry::Builder::add_text(std::string_view yaml, const std::string& file_name, Tier tier) {
  PatchFile parsed = parse_patch_file(yaml, file_name, tier);
  for (auto& rule : parsed.rules) registry_.rules_.push_back(std::move(rule));
  for (auto& [from, to] : parsed.aliases) registry_.aliases_[from] = std::move(to);
  if (parsed.skips_replace) registry_.skips_.clear();
  registry_.skips_.insert(registry_.skips_.end(), parsed.skips.begin(), parsed.skips.end());
  registry_.notes_.insert(registry_.notes_.end(), parsed.notes.begin(), parsed.notes.end());
}

Registry Registry::Builder::build() {
  std::set<std::string> methods;
  for (const auto& claim : registry_.claims_) methods.insert(claim.method);
  for (const auto& rule : registry_.rules_) {
    // Rules that come with graft name methods of plugins that may not be installed.
    for (const auto& method : rule.methods)
      if (rule.tier != Tier::installed && method != "*" && !methods.empty() &&
          !methods.contains(method)) {
        std::string note =
            rule.origin.text() + ": no loaded plugin has the method " + quote(method);
        if (const auto near = nearest_names(method, {methods.begin(), methods.end()});
            !near.empty())
          note += "; did you mean " + near + "?";
        registry_.notes_.push_back(std::move(note));
      }
  }
  check_contradictions(registry_.rules_);
  check_circles(registry_.rules_);
  return std::move(registry_);
}

}  // namespace graft
