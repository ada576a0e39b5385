// A file of registry rules, and the names that its patterns match.

#include "fuzz.h"
#include "registry/patch_file.h"

using namespace graft;
using namespace graft::fuzz;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  PatchFile file;
  if (!accepts([&] { file = parse_patch_file(as_text(data, size), "rules.yaml", Tier::user); }))
    return 0;
  for (const auto& note : file.notes) require(printable(note), note);
  for (const auto& rule : file.rules)
    if (rule.match)
      for (const char* path : {"", "model.layers.31.mlp.experts.127.down_proj", "a\xff"})
        accepts([&] { rule.match->matches(path); });
  return 0;
}
