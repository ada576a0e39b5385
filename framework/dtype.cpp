#include "graft/dtype.h"

#include <array>

namespace graft {
namespace {

struct Row {
  std::string_view name;
  std::size_t size;
  bool is_float;
};

constexpr std::array<Row, 16> kRows{{
    {"BOOL", 1, false},
    {"U8", 1, false},
    {"I8", 1, false},
    {"F8_E5M2", 1, true},
    {"F8_E4M3", 1, true},
    {"F8_E8M0", 1, true},
    {"I16", 2, false},
    {"U16", 2, false},
    {"F16", 2, true},
    {"BF16", 2, true},
    {"I32", 4, false},
    {"U32", 4, false},
    {"F32", 4, true},
    {"F64", 8, true},
    {"I64", 8, false},
    {"U64", 8, false},
}};

const Row& row(Dtype dtype) { return kRows[static_cast<std::size_t>(dtype)]; }

}  // namespace

std::size_t size_of(Dtype dtype) { return row(dtype).size; }
std::string_view name_of(Dtype dtype) { return row(dtype).name; }
bool is_float(Dtype dtype) { return row(dtype).is_float; }

std::optional<Dtype> dtype_named(std::string_view name) {
  for (std::size_t i = 0; i < kRows.size(); ++i)
    if (kRows[i].name == name) return static_cast<Dtype>(i);
  return std::nullopt;
}

}  // namespace graft
