#include "checkpoint/gguf_fields.h"

#include <cmath>
#include <limits>

#include "graft/error.h"
#include "text/utf8.h"

namespace graft {

const GgufValue* GgufFields::find(std::string_view field) {
  used_.insert(std::string(field));
  return header_->find(prefix_ + std::string(field));
}

template <class Read>
auto GgufFields::read(std::string_view field, Read get) {
  try {
    return get(header_->at(prefix_ + std::string(field)));
  } catch (Error& error) {
    if (has(field)) error.at(quote(prefix_ + std::string(field)));
    throw error;
  }
}

bool GgufFields::has(std::string_view field) const {
  return header_->find(prefix_ + std::string(field)) != nullptr;
}

std::int64_t GgufFields::size(std::string_view field) {
  find(field);
  return read(field, [](const GgufValue& value) {
    const std::uint64_t size = value.as_unsigned();
    if (size < 1 || size > std::numeric_limits<std::int32_t>::max())
      throw Error(ErrorKind::model, "a size is out of range")
          .expected("1 to 2147483647")
          .found(std::to_string(size));
    return static_cast<std::int64_t>(size);
  });
}

std::int64_t GgufFields::size(std::string_view field, std::int64_t otherwise) {
  return find(field) ? size(field) : otherwise;
}

double GgufFields::positive(std::string_view field) {
  find(field);
  return read(field, [](const GgufValue& value) {
    const double number = value.as_double();
    if (!(number > 0) || !std::isfinite(number))
      throw Error(ErrorKind::model, "a number must be positive").found(value.text());
    return number;
  });
}

double GgufFields::positive(std::string_view field, double otherwise) {
  return find(field) ? positive(field) : otherwise;
}

std::string GgufFields::string(std::string_view field, std::string_view otherwise) {
  if (!find(field)) return std::string(otherwise);
  return read(field, [](const GgufValue& value) { return std::string(value.as_string()); });
}

void GgufFields::require(std::string_view field, double only, std::string_view why) {
  if (!find(field)) return;
  read(field, [&](const GgufValue& value) {
    const double found = value.type() == GgufType::boolean ? value.as_bool() : value.as_double();
    if (found != only) throw Error(ErrorKind::model, std::string(why)).found(value.text());
    return 0;
  });
}

void GgufFields::finish() const {
  for (const auto& [key, value] : header_->metadata())
    if (key.starts_with(prefix_) && !used_.contains(key.substr(prefix_.size())))
      throw Error(ErrorKind::model, "unknown metadata that may change results")
          .at(quote(key))
          .found(value.text());
}

}  // namespace graft
