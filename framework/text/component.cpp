#include "text/component.h"

#include <algorithm>

#include "text/utf8.h"

namespace graft {

std::vector<const Value*> flatten(const Value* value, std::string_view list_key) {
  std::vector<const Value*> steps, waiting;
  if (value) waiting.push_back(value);
  while (!waiting.empty()) {
    const Value* next = waiting.back();
    waiting.pop_back();
    if (type_of(*next) != "Sequence") {
      steps.push_back(next);
      continue;
    }
    allow_fields(*next, {list_key});
    const auto& members = next->at(list_key).as_array();
    for (auto member = members.rbegin(); member != members.rend(); ++member)
      waiting.push_back(&*member);
  }
  return steps;
}

const std::string& type_of(const Value& component) { return component.at("type").as_string(); }

void allow_fields(const Value& component, std::initializer_list<std::string_view> names) {
  for (const auto& [field, member] : component.as_object())
    if (field != "type" && std::find(names.begin(), names.end(), field) == names.end())
      throw Error(ErrorKind::model, "the field " + quote(field) + " is unknown")
          .hint("this file needs a newer graft, or the field is a mistake");
}

void refuse_type(std::string_view what, std::string_view type) {
  throw Error(ErrorKind::model, "this build has no " + std::string(what) + " " + quote(type));
}

void refuse_field(std::string_view field, std::string_view value, std::string_view expected) {
  throw Error(ErrorKind::model, "the field " + quote(field) + " has an unknown value")
      .expected(expected)
      .found(quote(value));
}

char32_t get_character(const Value& component, std::string_view field) {
  const std::string& text = component.at(field).as_string();
  if (text.empty() || utf8_size(text[0]) != text.size()) refuse_field(field, text, "one character");
  std::size_t position = 0;
  return next_code_point(text, position);
}

}  // namespace graft
