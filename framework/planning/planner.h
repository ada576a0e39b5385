#pragma once

#include <functional>
#include <memory>
#include <string>

#include "graft/checkpoint.h"
#include "graft/model.h"
#include "graft/plan.h"
#include "graft/quantizer.h"
#include "graft/restructuring.h"
#include "registry/registry.h"

namespace graft {

/// Finds a quantizer by plugin id and method; nullptr when the plugin has none.
using QuantizerLookup =
    std::function<const Quantizer*(const std::string& plugin_id, const std::string& method)>;

/// The method that some settings belong to, and the plugin that parsed them.
struct Method {
  std::string name;  ///< empty: nothing is to be quantized
  std::string plugin_id;
  const Quantizer* quantizer = nullptr;
  Value settings;  ///< as given
  QuantConfigPtr config;
};

/// Throws Error(plugin) for a nullptr that the plugin made.
QuantConfigPtr require_config(QuantConfigPtr config, const std::string& plugin_id);

/// The method among `claims` whose quantizer recognises `settings` best. Throws Error(plugin) when
/// none does (naming what is installed and what is near), or when two do equally well.
Method find_method(const Value& settings, const std::vector<ClaimRow>& claims,
                   const QuantizerLookup& lookup);

/// The restructuring of that name, or nullptr.
using RestructureLookup = std::function<const Restructuring*(const std::string& name)>;

struct PlanRequest {
  const Registry* registry = nullptr;
  QuantizerLookup quantizers;
  RestructureLookup restructures;
  Method method;
  /// The settings describe the checkpoint (else: what to make of a dense one).
  bool pre_quantized = false;
  /// Headers only; nullptr plans from the skeleton alone.
  const Checkpoint* checkpoint = nullptr;
  /// An earlier plan of the same model, which has carried out its restructurings; nullptr: none.
  const Plan* before = nullptr;
  at::ScalarType dtype = at::kFloat;
  DeviceMap devices;  ///< decided: no spread
  bool allow_nonfinite = false;  ///< NaN and infinity in scales are let through
  /// Further condition on what may be converted; empty: none.
  std::function<bool(const ModuleSpec&)> predicate;
};

/// Walks `root` and decides about every module that owns parameters. Restructurings are carried out
/// as the walk meets them, so that their children can be planned; on a model with data the new
/// modules hold views of the old ones' tensors. Reads no tensor data. Throws Error for what makes
/// planning impossible; what is merely missing is in the Plan.
Plan make_plan(const std::shared_ptr<nn::Block>& root, const PlanRequest& request);

}  // namespace graft
