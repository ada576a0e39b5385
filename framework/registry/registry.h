#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "graft/export.h"
#include "graft/value.h"
#include "registry/name_match.h"

namespace graft {

/// Where rules come from; a later one wins at equal specificity.
enum class Tier { plugin, installed, user, command_line };

struct Origin {
  std::string file;
  int line = 0;
  std::string text() const { return line ? file + ":" + std::to_string(line) : file; }
};

/// One row of `patches` (docs/registry.md).
struct Rule {
  std::string module_class = "*";
  std::vector<std::string> methods;
  std::string replacement;          ///< a class that the host or a plugin builds; empty: none
  std::optional<std::string> keep;  ///< leave dense, for this reason
  std::string plugin;               ///< pin
  std::optional<NamePattern> match;
  std::string device;
  std::optional<int> priority;
  Value options{Value::Object{}};
  Origin origin;
  Tier tier = Tier::installed;

  Specificity specificity() const;
  /// Which of two that fit a module wins.
  GRAFT_API bool outranks(const Rule& other) const;
};

/// A claim of a loaded plugin.
struct ClaimRow {
  std::string plugin_id, plugin_file, method, module_class, device;
  int priority = 0;
};

struct Query {
  std::string method, module_class, path, device;
};

struct Loser {
  std::string who, reason;
};

/// What the registry says about one module.
struct GRAFT_API Decision {
  enum class Kind {
    none,     ///< nobody claims the class
    keep,     ///< a rule keeps it dense; who would build it is in `claims` all the same
    replace,  ///< a rule names a replacement
    claims,   ///< plugins may build it, in this order
  };
  Kind kind = Kind::none;
  std::string reason;
  std::optional<Rule> rule;      ///< the one that won
  std::vector<ClaimRow> claims;  ///< also of `keep`, for checkpoints that hold it quantized
  Value options{Value::Object{}};
  std::vector<Loser> losers;
  std::string resolved_class;  ///< after aliases
};

/// Claims of plugins and rules of YAML files: which candidates, in which order, for a module.
/// Immutable once built, thread-safe; same inputs, same order.
class GRAFT_API Registry {
 public:
  class Builder;

  /// Throws Error(plugin) when two plugins are equally good: names both files and the line that
  /// decides.
  Decision decide(const Query& query) const;

  /// The skip list for a model: that of the rules and that of its settings.
  SkipNames skip_names(const std::vector<std::string>& settings) const;
  const std::vector<Rule>& rules() const { return rules_; }
  /// Patterns of rules that a user wrote and that match no module of any class, as
  /// "file:line: ...". `paths` are those of a model.
  std::vector<std::string> unmatched_rules(const std::vector<std::string>& paths) const;
  const std::vector<ClaimRow>& claims() const { return claims_; }
  const std::map<std::string, std::string>& aliases() const { return aliases_; }
  const std::vector<std::string>& skips() const { return skips_; }
  /// What is odd but does not stop: unknown keys, empty files, unknown methods.
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  std::vector<Rule> rules_;
  std::vector<ClaimRow> claims_;
  std::map<std::string, std::string> aliases_;
  std::vector<std::string> skips_;
  std::vector<std::string> notes_;
};

class GRAFT_API Registry::Builder {
 public:
  void add_claims(const std::vector<ClaimRow>& claims);
  /// Throws Error(plugin) with file:line:column for whatever is wrong in it.
  void add_file(const std::filesystem::path& file, Tier tier);
  void add_text(std::string_view yaml, const std::string& file_name, Tier tier);
  /// Throws Error(plugin) for replacements that go in a circle and rules that contradict each
  /// other.
  Registry build();

 private:
  Registry registry_;
};

}  // namespace graft
