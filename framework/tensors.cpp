#include "graft/tensors.h"

#include <array>

#include "graft/error.h"

namespace graft {

void Tensors::set(std::string name, at::Tensor tensor) {
  for (auto& [known, value] : entries_)
    if (known == name) {
      value = std::move(tensor);
      return;
    }
  entries_.emplace_back(std::move(name), std::move(tensor));
}

const at::Tensor* Tensors::find(std::string_view name) const {
  for (const auto& [known, value] : entries_)
    if (known == name) return &value;
  return nullptr;
}

const at::Tensor& Tensors::at(std::string_view name) const {
  if (const auto* tensor = find(name)) return *tensor;
  std::string there;
  for (const auto& entry : entries_) there += (there.empty() ? "" : ", ") + quote(entry.first);
  throw Error(ErrorKind::model, "the tensor " + quote(name) + " is missing")
      .found(there.empty() ? "no tensors" : there);
}

at::ScalarType scalar_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::BOOL:
      return at::kBool;
    case Dtype::U8:
      return at::kByte;
    case Dtype::I8:
      return at::kChar;
    case Dtype::F8_E5M2:
      return at::kFloat8_e5m2;
    case Dtype::F8_E4M3:
      return at::kFloat8_e4m3fn;
    case Dtype::F8_E8M0:
      return at::kFloat8_e8m0fnu;
    case Dtype::I16:
      return at::kShort;
    case Dtype::U16:
      return at::kUInt16;
    case Dtype::F16:
      return at::kHalf;
    case Dtype::BF16:
      return at::kBFloat16;
    case Dtype::I32:
      return at::kInt;
    case Dtype::U32:
      return at::kUInt32;
    case Dtype::F32:
      return at::kFloat;
    case Dtype::F64:
      return at::kDouble;
    case Dtype::I64:
      return at::kLong;
    case Dtype::U64:
      return at::kUInt64;
  }
  throw Error(ErrorKind::internal, "unknown dtype");
}

Dtype dtype_of(at::ScalarType type) {
  for (int i = 0; i <= static_cast<int>(Dtype::U64); ++i)
    if (scalar_type(static_cast<Dtype>(i)) == type) return static_cast<Dtype>(i);
  throw Error(ErrorKind::internal,
              std::string("safetensors has no type for ") + c10::toString(type));
}

namespace {

constexpr std::array<std::pair<std::string_view, at::ScalarType>, 7> kWords{{
    {"float32", at::kFloat},
    {"float16", at::kHalf},
    {"bfloat16", at::kBFloat16},
    {"float64", at::kDouble},
    {"int8", at::kChar},
    {"uint8", at::kByte},
    {"int32", at::kInt},
}};

}  // namespace

std::string_view dtype_word(at::ScalarType type) {
  for (const auto& [word, known] : kWords)
    if (known == type) return word;
  return c10::toString(type);
}

void require_model_dtype(at::ScalarType type) {
  if (type == at::kFloat || type == at::kBFloat16 || type == at::kHalf) return;
  throw Error(ErrorKind::usage, "models do not compute in this dtype")
      .expected("float32, bfloat16 or float16")
      .found(quote(dtype_word(type)))
      .hint("choose one of them (--dtype)");
}

std::optional<at::ScalarType> dtype_from_word(std::string_view word) {
  if (word.starts_with("torch.")) word.remove_prefix(6);
  for (const auto& [known, type] : kWords)
    if (known == word) return type;
  return std::nullopt;
}

at::ScalarType float_dtype_from_word(std::string_view word, ErrorKind kind) {
  const auto type = dtype_from_word(word);
  const bool asked = kind == ErrorKind::usage;  // what a file says is told later, with a way out
  if (!type || !c10::isFloatingType(*type) || (asked && *type == at::kDouble))
    throw Error(kind, "unknown dtype").expected("float32, bfloat16 or float16").found(quote(word));
  return *type;
}

}  // namespace graft
