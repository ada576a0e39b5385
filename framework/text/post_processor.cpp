#include "text/post_processor.h"

#include <limits>

#include "text/component.h"

namespace graft {
namespace {

constexpr std::size_t kIdLimit = 1024;

TokenId read_id(const Value& value) {
  const std::int64_t id = value.as_int();
  if (id < 0 || id > std::numeric_limits<TokenId>::max())
    refuse_field("id", std::to_string(id), "0 to 2147483647");
  return static_cast<TokenId>(id);
}

/// Wraps what is there already: a later post-processor works on the result of an earlier one.
void wrap(PostProcessor& out, const std::vector<TokenId>& before,
          const std::vector<TokenId>& behind) {
  out.before.insert(out.before.begin(), before.begin(), before.end());
  out.behind.insert(out.behind.end(), behind.begin(), behind.end());
  if (out.before.size() + out.behind.size() > kIdLimit)
    throw Error(ErrorKind::model, "more than " + std::to_string(kIdLimit) + " ids are added");
}

/// One entry of "single": {"SpecialToken": {"id": "<s>", ...}} or {"Sequence": {"id": "A", ...}}.
void add_template(const Value& value, PostProcessor& out) {
  allow_fields(value, {"single", "pair", "special_tokens"});
  const Value& special_tokens = value.at("special_tokens");
  std::vector<TokenId> before, behind;
  bool seen = false;
  for (const Value& entry : value.at("single").as_array()) {
    const auto& object = entry.as_object();
    if (object.size() != 1)
      throw Error(ErrorKind::model, "wrong entry of 'single'")
          .expected("one field, 'SpecialToken' or 'Sequence'");
    const auto& [kind, piece] = object.front();
    const std::string& name = piece.at("id").as_string();
    if (kind == "Sequence") {
      if (name != "A" || seen)
        throw Error(ErrorKind::model, "wrong template 'single'").expected("sequence A once");
      seen = true;
    } else if (kind == "SpecialToken") {
      const Value* special = special_tokens.find(name);
      if (!special) throw Error(ErrorKind::model, "'special_tokens' does not have " + quote(name));
      for (const Value& id : special->at("ids").as_array())
        (seen ? behind : before).push_back(read_id(id));
    } else {
      refuse_type("template entry", kind);
    }
  }
  if (!seen) throw Error(ErrorKind::model, "wrong template 'single'").expected("sequence A once");
  wrap(out, before, behind);
}

/// ["[SEP]", 102]
TokenId read_pair(const Value& value, std::string_view field) {
  const auto& pair = value.at(field).as_array();
  if (pair.size() != 2 || !pair[0].is_string())
    throw Error(ErrorKind::model, "wrong field " + quote(field)).expected("a token and its id");
  return read_id(pair[1]);
}

void add_step(const Value& value, PostProcessor& out) {
  const std::string& type = type_of(value);
  if (type == "TemplateProcessing") {
    add_template(value, out);
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    if (type == "BertProcessing")
      allow_fields(value, {"sep", "cls"});
    else
      allow_fields(value, {"sep", "cls", "trim_offsets", "add_prefix_space"});
    wrap(out, {read_pair(value, "cls")}, {read_pair(value, "sep")});
  } else if (type == "ByteLevel") {
    // Works on offsets into the text only, which graft does not report.
    allow_fields(value, {"add_prefix_space", "trim_offsets", "use_regex"});
  } else {
    refuse_type("post-processor", type);
  }
}

}  // namespace

PostProcessor make_post_processor(const Value* value) {
  PostProcessor out;
  for (const Value* step : flatten(value, "processors"))
    in_component("post-processor", *step, [&] { add_step(*step, out); });
  return out;
}

}  // namespace graft
