#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "graft/error.h"
#include "graft/value.h"

namespace graft {

/// Base of the readers that take JSON as a stream of events, because the files are large and must
/// have exactly one form. Every event that a reader does not override is refused.
class JsonEvents : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return refuse("null"); }
  bool boolean(bool b) override { return refuse(b ? "true" : "false"); }
  bool number_integer(number_integer_t i) override {
    return refuse(i == 0 ? "-0" : std::to_string(i));
  }
  bool number_unsigned(number_unsigned_t u) override { return refuse(std::to_string(u)); }
  bool number_float(number_float_t, const string_t& text) override { return refuse(quote(text)); }
  bool string(string_t& text) override { return refuse("the string " + quote(text)); }
  bool binary(binary_t&) override { return refuse("binary data"); }
  bool start_object(std::size_t) override { return refuse("an object"); }
  bool start_array(std::size_t) override { return refuse("a list"); }
  bool end_object() override { return true; }
  bool end_array() override { return true; }

  bool parse_error(std::size_t, const std::string&,
                   const nlohmann::detail::exception& error) override {
    std::string what = error.what();
    if (const auto end = what.find("] "); end != std::string::npos) what.erase(0, end + 2);
    throw Error(ErrorKind::model, "not valid JSON (" + quote(what) + ")");
  }

 protected:
  /// Throws Error(model) saying what was expected at this place; never returns.
  virtual bool refuse(const std::string& found) = 0;
};

}  // namespace graft
