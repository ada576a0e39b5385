// A chat template: Jinja text that is recognised by its shape and never run.

#include "text/chat_template.h"

#include "fuzz.h"

using namespace graft;
using namespace graft::fuzz;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  accepts([&] {
    const ChatTemplate jinja(as_text(data, size));
    const ChatMessage message{"user", " \xc2\xa0hi\xff "};
    require(jinja.render({&message, 1}, true).find("hi") != std::string::npos);
  });
  return 0;
}
