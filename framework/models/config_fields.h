#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>

#include "graft/value.h"

namespace graft {

/// A size of a model's config: present, an integer, 1..2^31-1. Throws Error(model) naming the
/// field.
std::int64_t required_size(const Value& config, std::string_view field);
std::int64_t optional_size(const Value& config, std::string_view field, std::int64_t otherwise);

/// Throws Error(model) unless `whole` divides by `part`.
void require_multiple(std::string_view whole_name, std::int64_t whole, std::string_view part_name,
                      std::int64_t part);

/// An activation by its name in config.json ("silu", "gelu", ...).
using Activation = at::Tensor (*)(const at::Tensor&);
Activation activation_named(const std::string& name);

}  // namespace graft
