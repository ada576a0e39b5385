// The mutator of targets whose input is JSON, or several texts with zero bytes between them.

#include <cstring>

#include "fuzz.h"
#include "json_mutator.h"

using namespace graft::fuzz;

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  std::mt19937 random(seed);
  const std::string input(as_text(data, size));
  const auto texts = split(input, 1);
  const std::size_t changed = random() % texts.size();
  const std::size_t others = size - texts[changed].size();
  if (others >= most) return size;
  std::string out;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (i) out += '\0';
    out += i == changed ? mutate_json(std::string(texts[i]), most - others, random)
                        : std::string(texts[i]);
  }
  std::memcpy(data, out.data(), out.size());
  return out.size();
}
