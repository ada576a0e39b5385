// The patterns that name modules in rules and skip lists, and paths for them: PATTERN, a zero byte,
// PATH.

#include "fuzz.h"
#include "registry/name_match.h"

using namespace graft;
using namespace graft::fuzz;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto texts = split(as_text(data, size), 2);
  const std::string pattern(texts[0]);
  for (const std::string& text : {pattern, "re:" + pattern})
    accepts([&] { NamePattern(text).matches(texts[1]); });
  accepts([&] {
    SkipNames names({pattern});
    const auto entry = names.match(texts[1]);
    require(!entry || *entry == pattern);
    require(names.unmatched().empty() == entry.has_value());
  });
  return 0;
}
