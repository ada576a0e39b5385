#include "safetensors_mutator.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "json_mutator.h"

namespace graft::fuzz {

namespace {

constexpr std::size_t kLength = 8;

}  // namespace

std::uint64_t safetensors_length(std::string_view file) {
  std::uint64_t length = 0;
  if (file.size() >= kLength) std::memcpy(&length, file.data(), kLength);
  return length;
}

std::string mutate_safetensors(std::string file, std::size_t most_bytes, std::mt19937& random) {
  const std::uint64_t length = safetensors_length(file);
  if (file.size() < kLength || length > file.size() - kLength || random() % 8 == 0)
    return mutate_bytes(std::move(file), most_bytes);
  const std::size_t rest = kLength + static_cast<std::size_t>(length);
  const std::size_t room = most_bytes - (file.size() - length);
  const std::string header = mutate_json(file.substr(kLength, length), room, random);
  std::string out(kLength, '\0');
  const std::uint64_t new_length = header.size();
  std::memcpy(out.data(), &new_length, kLength);
  out += header + file.substr(rest);
  if (random() % 8 == 0)
    out.resize(std::min<std::size_t>(most_bytes, out.size() ^ (random() % 16)));
  return out;
}

}  // namespace graft::fuzz
