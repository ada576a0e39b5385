// config.json and every other JSON text that becomes a Value: what is read is written and read again
// as the same.

#include "fuzz.h"
#include "graft/value.h"

using namespace graft;
using namespace graft::fuzz;

namespace {

void use(const Value& value) {
  if (!value.is_object()) return;
  for (const auto& [name, member] : value.as_object()) {
    require(member.is_null() || value.find(name) == &member);
    accepts([&] { value.get_int(name, 0); });
    accepts([&] { value.get_double(name, 0); });
    accepts([&] { value.get_string(name, ""); });
    accepts([&] { value.get_strings(name); });
    use(member);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  accepts([&] {
    const Value value = parse_json(as_text(data, size));
    use(value);
    const std::string text = to_json(value);
    require(parse_json(text) == value && to_json(parse_json(to_json(value, 2))) == text);
  });
  return 0;
}
