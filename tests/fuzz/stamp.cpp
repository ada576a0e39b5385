// A file that lies where plugins lie: its stamp is read without running it.

#include "plugins/stamp.h"

#include <cstring>

#include "fuzz.h"

using namespace graft;
using namespace graft::fuzz;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const MemoryFile memory;
  const auto file = InspectedFile::open(memory.write(as_text(data, size)));
  const auto stamp = read_stamp(std::get<InspectedFile>(file));
  if (const auto* refusal = std::get_if<Refusal>(&stamp)) {
    require(!refusal->reason.empty() && printable(refusal->reason));
  } else {
    const auto& found = std::get<graft_stamp>(stamp);
    require(std::memchr(found.id, '\0', sizeof(found.id)) && printable(found.id) &&
            std::memchr(found.version, '\0', sizeof(found.version)) && printable(found.version) &&
            std::memchr(found.torch, '\0', sizeof(found.torch)) && printable(found.torch));
  }
  return 0;
}
