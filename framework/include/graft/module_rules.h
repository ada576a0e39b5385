#pragma once

#include <functional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "graft/export.h"
#include "graft/quantizer.h"
#include "graft/regex.h"
#include "graft/value.h"

// What settings say of single modules, for Quantizer::describe_modules.

namespace graft {

struct NameRule {
  std::string pattern;  ///< Perl-compatible: "^model\.layers\.\d+\.mlp\.up_proj$", "^a\.experts\."
  Value what;
};

/// Patterns for the modules of which `wanted` gives something else than null. Modules whose names
/// differ in nothing but numbers share one when the same is wanted of all of them; no pattern
/// matches a module of the list that it is not for.
GRAFT_API std::vector<NameRule> name_rules(
    std::span<const PlannedModule> modules,
    const std::function<Value(const PlannedModule&)>& wanted);

/// A rule of settings for the modules whose names it matches from their start.
struct GivenRule {
  Regex name;
  bool skip = false;  ///< "-:" before the pattern: they stay dense
  Value overrides;    ///< an object, or null
};

/// The object of patterns ("-:a", "+:a", "a") and overrides in its order. `check` may refuse
/// overrides. Throws Error(model) at the key.
GRAFT_API std::vector<GivenRule> read_rules(const Value& rules,
                                            const std::function<void(const Value&)>& check = {});
/// Adds what such rules override beside `known` fields to the unknown ones of settings.
GRAFT_API void add_unknown_overrides(const Value& rules,
                                     const std::set<std::string_view>& known,
                                     std::vector<std::string>& unknown_fields);
/// The first that matches any of the names, or nullptr.
GRAFT_API const GivenRule* first_rule(const std::vector<GivenRule>& rules,
                                      std::span<const std::string> names);

/// A skip list for readers that match in different ways, some by parts of names: each dense module
/// by its whole names; of `given` what is part of none of these. `with_usual`: also those that are
/// dense on their own.
GRAFT_API std::vector<std::string> skip_list(const std::vector<std::string>& given,
                                             std::span<const PlannedModule> modules,
                                             bool with_usual);

/// For Quantizer::require_portable: throws Error(usage) naming sizes that would do unless groups of
/// `group_size` inputs, -1 for one group, fill the module's and are of a `known` size.
GRAFT_API void require_whole_groups(const ModuleSpec& spec, std::int64_t group_size,
                                    const std::vector<std::int64_t>& known);

/// "lm_head", at the top or below something.
GRAFT_API bool is_output_head(const std::string& name);

/// Whether the module is inside a numbered layer: some readers look nowhere else.
GRAFT_API bool in_a_layer(const PlannedModule& module);

/// A name with "#" in place of each component that is a number: "model.layers.#.mlp.up_proj".
GRAFT_API std::string family_of(const std::string& name);

}  // namespace graft
