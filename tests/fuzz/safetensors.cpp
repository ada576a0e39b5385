// A .safetensors file: its header, then every byte of its tensors.

#include <cstring>

#include "checkpoint/nonfinite.h"
#include "fuzz.h"
#include "graft/checkpoint.h"
#include "json_mutator.h"

using namespace graft;
using namespace graft::fuzz;

namespace {

constexpr std::size_t kLength = 8;

std::uint64_t header_length(std::string_view file) {
  std::uint64_t length = 0;
  if (file.size() >= kLength) std::memcpy(&length, file.data(), kLength);
  return length;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const MemoryFile file;
  const auto path = file.write(as_text(data, size));
  accepts([&] {
    const Checkpoint checkpoint = Checkpoint::open_file(path);
    std::uint64_t covered = kLength + header_length(as_text(data, size));
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

/// Changes the header and keeps its length true, and the data there, most of the time.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  std::mt19937 random(seed);
  std::string file(as_text(data, size));
  const std::uint64_t length = header_length(file);
  if (file.size() < kLength || length > file.size() - kLength || random() % 8 == 0)
    file = mutate_bytes(std::move(file), most);
  else {
    const std::size_t rest = kLength + static_cast<std::size_t>(length);
    const std::size_t room = most - (file.size() - length);
    std::string header = mutate_json(file.substr(kLength, length), room, random);
    std::string out(kLength, '\0');
    const std::uint64_t new_length = header.size();
    std::memcpy(out.data(), &new_length, kLength);
    file = out + header + file.substr(rest);
    if (random() % 8 == 0) file.resize(std::min<std::size_t>(most, file.size() ^ (random() % 16)));
  }
  std::memcpy(data, file.data(), file.size());
  return file.size();
}
