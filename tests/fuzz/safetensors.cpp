// A .safetensors file: its header, then every byte of its tensors.

#include <cstring>

#include "checkpoint/nonfinite.h"
#include "checkpoint/safetensors_header.h"
#include "fuzz.h"
#include "graft/checkpoint.h"
#include "safetensors_mutator.h"

using namespace graft;
using namespace graft::fuzz;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const MemoryFile file;
  const auto path = file.write(as_text(data, size));
  accepts([&] {
    const Checkpoint checkpoint = Checkpoint::open_file(path);
    std::uint64_t covered = kLengthBytes + safetensors_length(as_text(data, size));
    std::string bytes;
    for (const auto& info : checkpoint.tensors()) {
      require(info.offset <= size && info.bytes <= size - info.offset);
      require(checkpoint.find(info.name) == &info);
      covered += info.bytes;
      bytes.resize(info.bytes);
      checkpoint.read(info, bytes.data());
      require(std::memcmp(bytes.data(), data + info.offset, info.bytes) == 0);
      if (const auto bad = first_nonfinite(info.dtype, bytes.data(), bytes.size()))
        require(*bad < info.bytes / size_of(info.dtype));
    }
    require(covered == size);
  });
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  std::mt19937 random(seed);
  const std::string file = mutate_safetensors(std::string(as_text(data, size)), most, random);
  std::memcpy(data, file.data(), file.size());
  return file.size();
}
