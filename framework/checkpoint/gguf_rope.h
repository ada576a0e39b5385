#pragma once

#include <vector>

#include "checkpoint/gguf_fields.h"
#include "graft/value.h"

namespace graft {

/// rope_scaling of config.json from the fields "rope.scaling..."; null when there is none. Scalings
/// other than linear are refused by name.
Value gguf_rope_scaling(GgufFields& fields);

/// rope_scaling for "rope_freqs.weight", by which llama.cpp divides the rotary frequencies:
/// `factors` are checked to be exactly what Llama 3.1's scaling gives, else Error(model).
/// Formula: convert_hf_to_gguf.py, generate_extra_tensors of Llama.
Value llama3_rope_scaling(const std::vector<float>& factors, double theta);

}  // namespace graft
