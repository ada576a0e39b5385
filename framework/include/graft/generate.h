#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "graft/checkpoint.h"
#include "graft/context.h"
#include "graft/model.h"

namespace graft {

struct GenerateOptions {
  std::int64_t max_new_tokens = 256;
  double temperature = 0;  ///< 0: the most likely token, always
  double top_p = 1;        ///< sample from the fewest tokens that hold this probability
  std::uint64_t seed = 0;  ///< of graft's own generator: the same tokens on every machine and run
  std::vector<std::int64_t> stop_ids;  ///< generation ends behind one of these
  Context context;  ///< told why tokens on a device are not replayed as a graph, if they are not
};

struct Generated {
  std::vector<std::int64_t> ids;  ///< the new ones, a stop id included
  bool stopped = false;           ///< a stop id came, or the caller had enough
  bool full = false;              ///< ended because the model has no positions for more
  double prompt_seconds = 0;      ///< until the first new token was known
  double decode_seconds = 0;      ///< for all others
};

/// Continues `prompt` token by token. `on_token` is called with each new id as it is known and may
/// return false to end; empty: nobody listens. Not thread-safe for one model. Throws Error(usage)
/// for an empty prompt, ids outside of the vocabulary, an encoder, or options out of range.
GRAFT_API Generated generate(Model& model, std::span<const std::int64_t> prompt,
                             const GenerateOptions& options,
                             const std::function<bool(std::int64_t id)>& on_token = {});

/// Ids that end an answer of this model: eos_token_id of generation_config.json and config.json.
GRAFT_API std::vector<std::int64_t> stop_ids_of(const Checkpoint& checkpoint);

}  // namespace graft
