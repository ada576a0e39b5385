#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "graft/error.h"
#include "graft/value.h"

namespace graft {

/// A normalizer, pre-tokenizer, post-processor or decoder of tokenizer.json: {"type": ..., ...}.
/// The functions throw Error(model); callers add where.

/// The components that `value` runs one after the other: itself, or the members of nested
/// {"type": "Sequence", `list_key`: [...]}. Nothing when null. Does not recurse.
std::vector<const Value*> flatten(const Value* value, std::string_view list_key);

const std::string& type_of(const Value& component);

/// Refuses a component that has other fields than "type" and these.
void allow_fields(const Value& component, std::initializer_list<std::string_view> names);

[[noreturn]] void refuse_type(std::string_view what, std::string_view type);
[[noreturn]] void refuse_field(std::string_view field, std::string_view value,
                               std::string_view expected);

/// A field that holds exactly one character.
char32_t get_character(const Value& component, std::string_view field);

/// Runs `make` and adds "<what> '<type>'" to an error it throws.
template <class Make>
auto in_component(std::string_view what, const Value& component, Make make) {
  try {
    return make();
  } catch (Error& error) {
    const Value* type = component.find("type");
    error.at(std::string(what) + (type && type->is_string() ? " " + quote(type->as_string()) : ""));
    throw;
  }
}

}  // namespace graft
