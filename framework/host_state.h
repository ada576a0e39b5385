#pragma once

#include <map>
#include <string>
#include <vector>

#include "graft/host.h"
#include "graft/plugins.h"
#include "planning/planner.h"
#include "registry/registry.h"

namespace graft {

struct Host::State {
  HostOptions options;
  Plugins plugins;
  std::vector<ClaimRow> claims;
  std::vector<std::string> patches;  ///< YAML given through the API
  std::map<std::string, Restructuring> replacements;
  Registry registry;

  void rebuild_registry();
  const Quantizer* quantizer(const std::string& plugin_id, const std::string& method) const;
  Method find_method(const Value& settings) const;
  /// The common part of every plan.
  PlanRequest request() const;
};

/// Of the config ("dtype", "torch_dtype"), else of the first float tensor, else float32.
at::ScalarType model_dtype(const Checkpoint& checkpoint);

}  // namespace graft
