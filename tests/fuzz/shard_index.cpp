// model.safetensors.index.json.

#include "checkpoint/shard_index.h"

#include "fuzz.h"

using namespace graft;
using namespace graft::fuzz;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  accepts([&] {
    const ShardIndex index = parse_shard_index(as_text(data, size), 1000);
    require(index.weight_map.size() <= 1000);
    for (const auto& [tensor, shard] : index.weight_map) require(shard < index.shards.size());
    for (const auto& name : index.shards)
      require(!name.empty() && name != "." && name != ".." &&
              name.find('/') == std::string::npos && name.find('\0') == std::string::npos);
  });
  return 0;
}
