// The tokenizer files of a model folder: tokenizer.json, a zero byte, tokenizer_config.json, a zero
// byte, a text. A file that is left out is empty.

#include "fuzz.h"
#include "graft/tokenizer.h"
#include "temporary_folder.h"

using namespace graft;
using namespace graft::fuzz;

namespace {

constexpr std::string_view kText =
    "Hello  world's 1234 caf\xc3\xa9 e\xcc\x81 \xea\xb0\x80 \xe4\xb8\xad\xe6\x96\x87 <s> [MASK]\r\n"
    "\t\xf0\x9f\x99\x82 don't\xc2\xa0stop \xff\xfe";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const test::TemporaryFolder folder(test::in_memory());
  const auto texts = split(as_text(data, size), 3);
  folder.write("tokenizer.json", texts[0]);
  std::filesystem::remove(folder.path() / "tokenizer_config.json");
  if (!texts[1].empty()) folder.write("tokenizer_config.json", texts[1]);
  accepts([&] {
    const Tokenizer tokenizer = Tokenizer::open(folder.path());
    for (const std::string_view text : {kText, texts[2]})
      accepts([&] {
        const auto ids = tokenizer.encode(text);
        tokenizer.decode(ids);
        TextStream stream(tokenizer);
        for (const auto id : ids) stream.push(id);
        stream.finish();
      });
  });
  return 0;
}
