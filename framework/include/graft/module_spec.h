#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>

namespace graft {

/// All that a decision about a module may depend on; no data.
struct ModuleSpec {
  std::string path;               ///< "model.layers.0.self_attn.q_proj"
  std::string class_name;         ///< "Linear", as Transformers names it; aliases are resolved
  std::int64_t in_features = 0;   ///< K; 0 when the class is no matrix
  std::int64_t out_features = 0;  ///< N
  bool bias = false;
  bool input_major = false;           ///< the dense weight is [K, N], as Conv1D keeps it
  at::ScalarType dtype = at::kFloat;  ///< of the dense weight
  c10::Device device = at::kCPU;      ///< where the replacement will live
};

}  // namespace graft
