#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace graft {

/// Types of metadata values, numbered as in the file.
enum class GgufType : std::uint32_t {
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  f32,
  boolean,
  string,
  array,
  u64,
  i64,
  f64,
};

std::string_view name_of(GgufType type);
/// Bytes of a value; 0 for strings and arrays, whose size varies.
std::uint32_t size_of(GgufType type);
/// The number of types: one behind the largest.
inline constexpr std::uint32_t kGgufTypes = 13;

/// The unsigned number in at most 8 bytes.
std::uint64_t little_endian(std::string_view bytes);

/// One checked metadata value. A view: the GgufHeader that it came from must live.
/// The as_ functions throw Error(model) naming both types when it is another one.
class GgufValue {
 public:
  GgufValue(GgufType type, std::string_view bytes) : type_(type), bytes_(bytes) {}

  GgufType type() const { return type_; }
  bool as_bool() const;
  std::string_view as_string() const;  ///< bytes of the file, which need not be UTF-8
  std::uint64_t as_unsigned() const;   ///< any integer type that is not negative
  double as_double() const;            ///< any number; a float32 keeps its value
  /// Elements of an array of strings, or of an array of integers.
  std::vector<std::string_view> as_strings() const;
  std::vector<std::int64_t> as_integers() const;
  /// "an array of 12 strings", "the u32 7", for messages.
  std::string text() const;

 private:
  GgufType type_;
  std::string_view bytes_;  ///< as in the file; of an array with the type and number of elements
};

}  // namespace graft
