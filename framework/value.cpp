#include "graft/value.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "graft/error.h"

namespace graft {
namespace {

constexpr std::string_view kCorrect = "correct it there, or get the file from its source again";

[[noreturn]] void wrong_type(std::string_view wanted, const Value& value) {
  throw Error(ErrorKind::model, "wrong type")
      .expected(wanted)
      .found(value.type_name())
      .hint(kCorrect);
}

/// Runs `read` and adds the field's name to an error it throws.
template <class Read>
auto in_field(std::string_view key, Read read) {
  try {
    return read();
  } catch (Error& error) {
    error.at("field " + quote(key));
    throw;
  }
}

}  // namespace

std::string_view Value::type_name() const {
  static constexpr std::array<std::string_view, 7> kNames{"null",   "bool", "integer", "number",
                                                          "string", "list", "object"};
  return kNames[data_.index()];
}

bool Value::as_bool() const {
  if (const auto* b = std::get_if<bool>(&data_)) return *b;
  wrong_type("bool", *this);
}

std::int64_t Value::as_int() const {
  if (const auto* i = std::get_if<std::int64_t>(&data_)) return *i;
  wrong_type("integer", *this);
}

double Value::as_double() const {
  if (const auto* i = std::get_if<std::int64_t>(&data_)) return static_cast<double>(*i);
  if (const auto* d = std::get_if<double>(&data_)) return *d;
  wrong_type("number", *this);
}

const std::string& Value::as_string() const {
  if (const auto* s = std::get_if<std::string>(&data_)) return *s;
  wrong_type("string", *this);
}

const Value::Array& Value::as_array() const {
  if (const auto* a = std::get_if<Array>(&data_)) return *a;
  wrong_type("list", *this);
}

const Value::Object& Value::as_object() const {
  if (const auto* o = std::get_if<Object>(&data_)) return *o;
  wrong_type("object", *this);
}

Value::Array& Value::as_array() { return const_cast<Array&>(std::as_const(*this).as_array()); }
Value::Object& Value::as_object() { return const_cast<Object&>(std::as_const(*this).as_object()); }

const Value* Value::find(std::string_view key) const {
  const auto* object = std::get_if<Object>(&data_);
  if (!object) return nullptr;
  for (const auto& [name, member] : *object)
    if (name == key) return member.is_null() ? nullptr : &member;
  return nullptr;
}

const Value& Value::at(std::string_view key) const {
  if (!is_object()) wrong_type("object with a field " + quote(key), *this);
  if (const Value* member = find(key)) return *member;
  throw Error(ErrorKind::model, "the field " + quote(key) + " is missing");
}

Value& Value::set(std::string_view key, Value value) {
  if (is_null()) data_ = Object{};
  auto& object = as_object();
  for (auto& [name, member] : object)
    if (name == key) return member = std::move(value);
  return object.emplace_back(std::string(key), std::move(value)).second;
}

bool Value::erase(std::string_view key) {
  auto* object = std::get_if<Object>(&data_);
  return object && std::erase_if(*object, [&](const auto& member) { return member.first == key; });
}

bool Value::get_bool(std::string_view key, bool otherwise) const {
  const Value* member = find(key);
  return member ? in_field(key, [&] { return member->as_bool(); }) : otherwise;
}

std::int64_t Value::get_int(std::string_view key, std::int64_t otherwise) const {
  const Value* member = find(key);
  return member ? in_field(key, [&] { return member->as_int(); }) : otherwise;
}

double Value::get_double(std::string_view key, double otherwise) const {
  const Value* member = find(key);
  return member ? in_field(key, [&] { return member->as_double(); }) : otherwise;
}

std::string Value::get_string(std::string_view key, std::string_view otherwise) const {
  const Value* member = find(key);
  return member ? in_field(key, [&] { return member->as_string(); }) : std::string(otherwise);
}

std::vector<std::string> Value::get_strings(std::string_view key) const {
  std::vector<std::string> out;
  const Value* member = find(key);
  if (!member) return out;
  const auto* list = std::get_if<Array>(&member->data_);
  const auto wrong = [&](const Value& found) {
    return Error(ErrorKind::model, "not a list of names")
        .at("field " + quote(key))
        .expected("a list of texts that are not empty")
        .found(to_json(found))
        .hint(kCorrect);
  };
  if (!list) throw wrong(*member);
  for (const auto& item : *list) {
    if (!item.is_string() || item.as_string().empty()) throw wrong(item);
    out.push_back(item.as_string());
  }
  return out;
}

namespace {

/// Builds a Value from parser events: nlohmann's DOM would drop duplicate keys silently and recurse
/// without a limit.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Builder(std::string_view text, const JsonLimits& limits) : text_(text), limits_(limits) {}

  bool null() override { return put({}); }
  bool boolean(bool b) override { return put(b); }
  bool number_integer(number_integer_t i) override { return put(std::int64_t{i}); }
  bool number_unsigned(number_unsigned_t u) override {
    if (u > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
      return put(static_cast<double>(u));
    return put(static_cast<std::int64_t>(u));
  }
  bool number_float(number_float_t d, const string_t& text) override {
    if (!std::isfinite(d)) fail("the number " + quote(text) + " is out of range");
    return put(d);
  }
  bool string(string_t& s) override { return put(std::move(s)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Value::Object{}); }
  bool start_array(std::size_t) override { return open(Value::Array{}); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    auto& [level, hashes] = stack_.back();
    auto& object = level.as_object();
    // Names are compared only when their hash was there before: a vocabulary has 100,000 keys.
    if (!hashes.insert(std::hash<std::string>()(name)).second &&
        std::any_of(object.begin(), object.end(),
                    [&](const auto& member) { return member.first == name; }))
      fail("the key " + quote(name) + " occurs twice");
    object.emplace_back(std::piecewise_construct, std::forward_as_tuple(std::move(name)),
                        std::forward_as_tuple());
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    std::string what = e.what();
    if (const auto colon = what.rfind("; "); colon != std::string::npos)
      what = what.substr(colon + 2);
    const std::size_t at = std::min(position ? position - 1 : 0, text_.size());
    const auto before = text_.substr(0, at);
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const auto newline = before.rfind('\n');
    const std::size_t column = at - (newline == std::string_view::npos ? 0 : newline + 1) + 1;
    throw Error(ErrorKind::model, "not valid JSON (" + quote(what) + ")")
        .at("line " + std::to_string(line) + ", column " + std::to_string(column))
        .hint(kCorrect);
  }

  Value take() { return std::move(root_); }

 private:
  struct Level {
    Value value;
    std::unordered_set<std::size_t> hashes;  ///< of the keys of an object
  };

  [[noreturn]] static void fail(std::string what) {
    throw Error(ErrorKind::model, std::move(what)).hint(kCorrect);
  }

  bool put(Value value) {
    if (stack_.empty()) {
      root_ = std::move(value);
    } else if (auto& top = stack_.back().value; top.is_array()) {
      top.as_array().push_back(std::move(value));
    } else {
      top.as_object().back().second = std::move(value);
    }
    return true;
  }
  bool open(Value value) {
    if (stack_.size() >= limits_.depth)
      fail("JSON nested deeper than " + std::to_string(limits_.depth) + " levels");
    stack_.push_back({std::move(value), {}});
    return true;
  }
  bool close() {
    Value done = std::move(stack_.back().value);
    stack_.pop_back();
    return put(std::move(done));
  }

  std::string_view text_;
  JsonLimits limits_;
  std::vector<Level> stack_;
  Value root_;
};

/// As Python's repr(float): shortest digits that read back, exponent below 1e-4 and from 1e16 on.
std::string python_float(double d) {
  if (std::isnan(d)) return "NaN";
  if (std::isinf(d)) return d < 0 ? "-Infinity" : "Infinity";
  char buffer[64];
  const auto scientific =
      std::to_chars(buffer, buffer + sizeof(buffer) - 1, d, std::chars_format::scientific);
  *scientific.ptr = '\0';
  const std::string_view text(buffer, static_cast<std::size_t>(scientific.ptr - buffer));
  const int exponent = std::atoi(text.data() + text.find('e') + 1);
  if (d != 0 && (exponent < -4 || exponent >= 16)) return std::string(text);
  const auto fixed = std::to_chars(buffer, buffer + sizeof(buffer), d, std::chars_format::fixed);
  std::string out(buffer, fixed.ptr);
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

void write_string(std::string& out, const std::string& text) {
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          char escape[7];
          std::snprintf(escape, sizeof(escape), "\\u%04x", static_cast<unsigned char>(c));
          out += escape;
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

void write(std::string& out, const Value& value, int indent, int level) {
  const auto newline = [&](int depth) {
    if (indent < 0) return;
    out += '\n';
    out.append(static_cast<std::size_t>(indent * depth), ' ');
  };
  const char* comma = indent < 0 ? ", " : ",";
  if (value.is_null()) {
    out += "null";
  } else if (value.is_bool()) {
    out += value.as_bool() ? "true" : "false";
  } else if (value.is_int()) {
    out += std::to_string(value.as_int());
  } else if (value.is_double()) {
    out += python_float(value.as_double());
  } else if (value.is_string()) {
    write_string(out, value.as_string());
  } else if (value.is_array()) {
    const auto& array = value.as_array();
    out += '[';
    for (std::size_t i = 0; i < array.size(); ++i) {
      if (i) out += comma;
      newline(level + 1);
      write(out, array[i], indent, level + 1);
    }
    if (!array.empty()) newline(level);
    out += ']';
  } else {
    const auto& object = value.as_object();
    out += '{';
    for (std::size_t i = 0; i < object.size(); ++i) {
      if (i) out += comma;
      newline(level + 1);
      write_string(out, object[i].first);
      out += ": ";
      write(out, object[i].second, indent, level + 1);
    }
    if (!object.empty()) newline(level);
    out += '}';
  }
}

}  // namespace

Value parse_json(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.bytes)
    throw Error(ErrorKind::model, "the JSON text is too large")
        .expected("at most " + std::to_string(limits.bytes) + " bytes")
        .found(std::to_string(text.size()));
  if (text.starts_with("\xEF\xBB\xBF"))
    throw Error(ErrorKind::model, "the file starts with a byte order mark")
        .at("line 1")
        .hint("save it as UTF-8 without one");
  Builder builder(text, limits);
  nlohmann::json::sax_parse(text, &builder);
  return builder.take();
}

std::string to_json(const Value& value, int indent) {
  std::string out;
  write(out, value, indent, 0);
  return out;
}

}  // namespace graft
