#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "graft/dtype.h"
#include "graft/export.h"

namespace graft {

enum class ErrorKind;

/// Tensors by name, in the order they were added; names are relative to a module ("weight",
/// "weight.absmax", "qweight"). A handful of entries: look-ups are linear.
class GRAFT_API Tensors {
 public:
  using Entry = std::pair<std::string, at::Tensor>;

  Tensors() = default;
  Tensors(std::initializer_list<Entry> entries) : entries_(entries) {}

  void set(std::string name, at::Tensor tensor);
  /// nullptr when absent.
  const at::Tensor* find(std::string_view name) const;
  /// Throws Error(model) naming what is missing and what is there.
  const at::Tensor& at(std::string_view name) const;
  bool empty() const { return entries_.empty(); }
  std::size_t size() const { return entries_.size(); }
  auto begin() const { return entries_.begin(); }
  auto end() const { return entries_.end(); }

 private:
  std::vector<Entry> entries_;
};

/// The LibTorch type of a checkpoint's element type and back.
GRAFT_API at::ScalarType scalar_type(Dtype dtype);
/// Throws Error(internal) for types that safetensors does not have.
GRAFT_API Dtype dtype_of(at::ScalarType type);
/// "float16" for kHalf, as config files spell it; and back, std::nullopt when unknown.
GRAFT_API std::string_view dtype_word(at::ScalarType type);
/// Throws Error(usage) for what models do not compute in: all but float32, bfloat16 and float16.
GRAFT_API void require_model_dtype(at::ScalarType type);
GRAFT_API std::optional<at::ScalarType> dtype_from_word(std::string_view word);
/// Of those the float types of models. Throws Error(kind) for any other word.
GRAFT_API at::ScalarType float_dtype_from_word(std::string_view word, ErrorKind kind);

}  // namespace graft
