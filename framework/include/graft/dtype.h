#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "graft/export.h"

namespace graft {

/// Element types of safetensors files, by their names there.
enum class Dtype : std::uint8_t {
  BOOL,
  U8,
  I8,
  F8_E5M2,
  F8_E4M3,
  F8_E8M0,
  I16,
  U16,
  F16,
  BF16,
  I32,
  U32,
  F32,
  F64,
  I64,
  U64,
};

GRAFT_API std::size_t size_of(Dtype dtype);
GRAFT_API std::string_view name_of(Dtype dtype);                    ///< "BF16"
GRAFT_API std::optional<Dtype> dtype_named(std::string_view name);  ///< of the safetensors name
GRAFT_API bool is_float(Dtype dtype);

}  // namespace graft
