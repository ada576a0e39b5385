#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/gguf_header.h"
#include "graft/value.h"

namespace graft {

/// A tensor of the Hugging Face folder and where it comes from.
struct GgufSource {
  std::string name;  ///< "model.layers.0.self_attn.q_proj.weight"
  const GgufTensor* tensor = nullptr;
  /// Not 0: rows [heads][2][half] in the folder are [heads][half][2] in the file. llama.cpp rotates
  /// neighbours, Transformers rotates halves.
  std::int64_t interleaved_heads = 0;
};

/// What the metadata and the tensors of a GGUF file are in Hugging Face's terms.
struct GgufModel {
  std::string architecture;  ///< "llama"
  Value config;              ///< config.json without a dtype
  Value generation_config;
  std::vector<GgufSource> tensors;           ///< in the order of the model
  const GgufTensor* rope_factors = nullptr;  ///< [head_dim / 2], for llama3_rope_scaling
};

/// Throws Error(model) for an architecture that is not known, for metadata that would change
/// results and is not understood, and for missing, unknown or misshapen tensors.
/// Names: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py
GgufModel describe_gguf_model(const GgufHeader& header);

/// A number that a file has as float32 as the shortest decimal that means the same float32.
double shortest_double(double value);

}  // namespace graft
