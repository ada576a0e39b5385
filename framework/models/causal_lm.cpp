#include "models/causal_lm.h"

namespace graft {

std::vector<CheckpointPrefix> decoder_prefixes() {
  return {{"model.language_model.", "model."},
          {"language_model.", ""},
          {"layers.", "model.layers."},
          {"embed_tokens.", "model.embed_tokens."},
          {"norm.", "model.norm."}};
}

void add_attention_groups(std::vector<InputGroup>& groups, const std::string& path,
                          const std::string& norm, bool repeated_values) {
  groups.push_back({{path + "q_proj", path + "k_proj", path + "v_proj"}, norm});
  // Grouped values are repeated over heads: their rows are no longer o_proj's columns one to one.
  groups.push_back({{path + "o_proj"}, repeated_values ? "" : path + "v_proj"});
}

void add_mlp_groups(std::vector<InputGroup>& groups, const std::string& path,
                    const std::string& norm) {
  groups.push_back({{path + "gate_proj", path + "up_proj"}, norm});
  groups.push_back({{path + "down_proj"}, path + "up_proj"});
}

}  // namespace graft
