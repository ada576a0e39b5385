#include "checkpoint/gguf_value.h"

#include <array>
#include <bit>

#include "graft/error.h"

namespace graft {
namespace {

struct TypeRow {
  std::string_view name;
  std::uint32_t bytes;  // 0: of variable size
};
constexpr std::array<TypeRow, kGgufTypes> kTypes{{{"u8", 1},
                                                  {"i8", 1},
                                                  {"u16", 2},
                                                  {"i16", 2},
                                                  {"u32", 4},
                                                  {"i32", 4},
                                                  {"f32", 4},
                                                  {"bool", 1},
                                                  {"string", 0},
                                                  {"array", 0},
                                                  {"u64", 8},
                                                  {"i64", 8},
                                                  {"f64", 8}}};

const TypeRow& row_of(GgufType type) { return kTypes[static_cast<std::size_t>(type)]; }

bool is_integer(GgufType type) {
  return type != GgufType::f32 && type != GgufType::f64 && type != GgufType::boolean &&
         size_of(type) > 0;
}

bool is_signed(GgufType type) {
  return type == GgufType::i8 || type == GgufType::i16 || type == GgufType::i32 ||
         type == GgufType::i64;
}

/// The two's complement value of an integer type; u64 above int64 wraps around.
std::int64_t integer_of(GgufType type, std::string_view bytes) {
  std::uint64_t value = little_endian(bytes);
  const unsigned bits = static_cast<unsigned>(bytes.size()) * 8;
  if (is_signed(type) && bits < 64 && value >> (bits - 1)) value |= ~std::uint64_t{0} << bits;
  return static_cast<std::int64_t>(value);
}

[[noreturn]] void wrong_type(std::string_view expected, const GgufValue& value) {
  throw Error(ErrorKind::model, "wrong type of metadata").expected(expected).found(value.text());
}

GgufType element_type(std::string_view array) {
  return static_cast<GgufType>(little_endian(array.substr(0, 4)));
}
std::uint64_t element_count(std::string_view array) { return little_endian(array.substr(4, 8)); }
constexpr std::size_t kArrayStart = 12;

}  // namespace

std::string_view name_of(GgufType type) { return row_of(type).name; }

std::uint32_t size_of(GgufType type) { return row_of(type).bytes; }

std::uint64_t little_endian(std::string_view bytes) {
  std::uint64_t out = 0;
  for (std::size_t i = bytes.size(); i-- > 0;)
    out = out << 8 | static_cast<unsigned char>(bytes[i]);
  return out;
}

bool GgufValue::as_bool() const {
  if (type_ != GgufType::boolean) wrong_type("a bool", *this);
  return bytes_[0] != 0;
}

std::string_view GgufValue::as_string() const {
  if (type_ != GgufType::string) wrong_type("a string", *this);
  return bytes_.substr(8);
}

std::uint64_t GgufValue::as_unsigned() const {
  const bool negative = is_signed(type_) && integer_of(type_, bytes_) < 0;
  if (!is_integer(type_) || negative) wrong_type("an integer that is not negative", *this);
  return little_endian(bytes_);
}

double GgufValue::as_double() const {
  if (type_ == GgufType::f32)
    return std::bit_cast<float>(static_cast<std::uint32_t>(little_endian(bytes_)));
  if (type_ == GgufType::f64) return std::bit_cast<double>(little_endian(bytes_));
  if (!is_integer(type_)) wrong_type("a number", *this);
  return is_signed(type_) ? static_cast<double>(integer_of(type_, bytes_))
                          : static_cast<double>(little_endian(bytes_));
}

std::vector<std::string_view> GgufValue::as_strings() const {
  if (type_ != GgufType::array || element_type(bytes_) != GgufType::string)
    wrong_type("an array of strings", *this);
  std::vector<std::string_view> out;
  std::size_t position = kArrayStart;
  for (std::uint64_t i = element_count(bytes_); i > 0; --i) {
    const std::uint64_t size = little_endian(bytes_.substr(position, 8));
    out.push_back(bytes_.substr(position + 8, size));
    position += 8 + size;
  }
  return out;
}

std::vector<std::int64_t> GgufValue::as_integers() const {
  if (type_ != GgufType::array || !is_integer(element_type(bytes_)))
    wrong_type("an array of integers", *this);
  const GgufType element = element_type(bytes_);
  const std::size_t each = size_of(element);
  std::vector<std::int64_t> out;
  for (std::size_t i = kArrayStart; i < bytes_.size(); i += each)
    out.push_back(integer_of(element, bytes_.substr(i, each)));
  return out;
}

std::string GgufValue::text() const {
  const std::string name(name_of(type_));
  if (type_ == GgufType::array)
    return "an array of " + std::to_string(element_count(bytes_)) + " " +
           std::string(name_of(element_type(bytes_)));
  if (type_ == GgufType::string) return quote(as_string(), 80);
  if (type_ == GgufType::boolean) return as_bool() ? "true" : "false";
  if (is_integer(type_))
    return "the " + name + " " +
           (is_signed(type_) ? std::to_string(integer_of(type_, bytes_))
                             : std::to_string(little_endian(bytes_)));
  return "the " + name + " " + std::to_string(as_double());
}

}  // namespace graft
