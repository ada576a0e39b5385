#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>
#include <vector>

#include "graft/value.h"

namespace graft {

/// The config with the fields of `defaults`, a JSON object, that it lacks: what the family's config
/// class in Transformers says of them. A field that is null is there.
Value with_defaults(const Value& config, std::string_view defaults);

/// A size of a model's config: present, an integer, 1..2^31-1. Throws Error(model) naming the
/// field.
std::int64_t required_size(const Value& config, std::string_view field);
std::int64_t optional_size(const Value& config, std::string_view field, std::int64_t otherwise);

/// The same of what modules are built for one by one, layers and experts: 1..10,000, as a wrong
/// number would take all memory.
std::int64_t required_count(const Value& config, std::string_view field);
std::int64_t optional_count(const Value& config, std::string_view field, std::int64_t otherwise);

/// 0 when the field is absent or null, as configs say "none" (a window, a rank).
std::int64_t size_or_none(const Value& config, std::string_view field);
/// A number from 0: soft-capping, clamps. Throws Error(model) when negative or not finite.
double number_or_none(const Value& config, std::string_view field);

/// Whether each decoder layer is of `kind` in the config's "layer_types"; without that field
/// `otherwise(layer)` says. Throws Error(model) when the list has another length or a type that is
/// neither `kind` nor "full_attention".
std::vector<bool> layers_of_type(const Value& config, std::string_view kind, std::int64_t layers,
                                 bool (*otherwise)(std::int64_t layer, const Value& config));

/// Throws Error(model) when the config asks for what graft does not do: a field that is true.
void refuse_field(const Value& config, std::string_view field);

/// Throws Error(model) unless each row can have `top_k` of `experts`.
void require_top_k(std::int64_t top_k, std::int64_t experts);

/// Throws Error(model) unless `whole` divides by `part`.
void require_multiple(std::string_view whole_name, std::int64_t whole, std::string_view part_name,
                      std::int64_t part);

/// An activation by its name in config.json ("silu", "gelu", ...).
using Activation = at::Tensor (*)(const at::Tensor&);
Activation activation_named(const std::string& name);

}  // namespace graft
