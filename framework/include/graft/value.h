#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "graft/export.h"

namespace graft {

/// A JSON-like value: what configs, settings and options are before a quantizer has parsed them.
/// Objects keep the order of their keys (it decides in some configs) and have no duplicate keys.
/// Integers and floats are kept apart, as written.
class GRAFT_API Value {
 public:
  using Array = std::vector<Value>;
  using Object = std::vector<std::pair<std::string, Value>>;

  Value() = default;  ///< null
  /// Copies, which may throw std::bad_alloc. Written out because a std::variant of strings and
  /// vectors that runs out of memory while it is copied crashes with libstdc++ (seen with GCC 12).
  Value(const Value& other) {
    std::visit([this](auto content) { data_ = std::move(content); }, other.data_);
  }
  Value(Value&&) noexcept = default;
  Value& operator=(const Value& other) { return *this = Value(other); }
  Value& operator=(Value&&) noexcept = default;
  ~Value() = default;
  Value(bool b) : data_(b) {}
  Value(int i) : data_(std::int64_t{i}) {}
  Value(std::int64_t i) : data_(i) {}
  Value(double d) : data_(d) {}
  Value(const char* s) : data_(std::string(s)) {}
  Value(std::string s) : data_(std::move(s)) {}
  Value(std::string_view s) : data_(std::string(s)) {}
  Value(Array a) : data_(std::move(a)) {}
  Value(Object o) : data_(std::move(o)) {}

  bool is_null() const { return std::holds_alternative<std::monostate>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_int() const { return std::holds_alternative<std::int64_t>(data_); }
  bool is_double() const { return std::holds_alternative<double>(data_); }
  bool is_number() const { return is_int() || is_double(); }
  bool is_string() const { return std::holds_alternative<std::string>(data_); }
  bool is_array() const { return std::holds_alternative<Array>(data_); }
  bool is_object() const { return std::holds_alternative<Object>(data_); }
  /// "null", "bool", "integer", "number", "string", "list", "object".
  std::string_view type_name() const;

  /// The content; throws Error(model) naming both types when it is another one.
  bool as_bool() const;
  std::int64_t as_int() const;
  double as_double() const;  ///< integers convert
  const std::string& as_string() const;
  const Array& as_array() const;
  const Object& as_object() const;
  Array& as_array();
  Object& as_object();

  /// The member, or nullptr when this is no object, has no such key, or the member is null:
  /// a null field of a config means its default.
  const Value* find(std::string_view key) const;
  /// The member; throws Error(model) naming the key when missing.
  const Value& at(std::string_view key) const;
  /// Sets or appends a member; a null value becomes an object first.
  Value& set(std::string_view key, Value value);
  bool erase(std::string_view key);

  /// Typed members with a default; a member of another type throws Error(model) at "field 'key'".
  bool get_bool(std::string_view key, bool otherwise) const;
  std::int64_t get_int(std::string_view key, std::int64_t otherwise) const;
  double get_double(std::string_view key, double otherwise) const;
  std::string get_string(std::string_view key, std::string_view otherwise) const;
  /// A list of strings, none of them empty; no such member: an empty list.
  std::vector<std::string> get_strings(std::string_view key) const;

  bool operator==(const Value& other) const = default;

 private:
  std::variant<std::monostate, bool, std::int64_t, double, std::string, Array, Object> data_;
};

struct JsonLimits {
  std::size_t bytes = 64u << 20;
  std::size_t depth = 64;
};

/// Parses strict JSON (a byte order mark, comments, trailing commas, duplicate keys, NaN are
/// refused). Throws Error(model) with line and column. Integers outside int64 become doubles.
GRAFT_API Value parse_json(std::string_view text, const JsonLimits& limits = {});

/// As Python's json.dumps writes it: `indent` < 0 gives one line with ", " and ": ", else pretty.
/// Floats are the shortest text that reads back to the same double, with Python's rules for
/// exponents. Non-ASCII text stays UTF-8.
GRAFT_API std::string to_json(const Value& value, int indent = -1);

}  // namespace graft
