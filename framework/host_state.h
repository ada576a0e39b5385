#pragma once

#include <map>
#include <mutex>
#include <set>
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
  /// Skeleton, settings and plan of a checkpoint.
  struct Prepared;
  Prepared prepare(const Host& host, const Checkpoint& checkpoint, const LoadOptions& given) const;
  /// Names of the settings files of all methods.
  std::set<std::string> settings_files() const;
  /// The common part of every plan.
  PlanRequest request() const;
  /// The restructuring of that name: the embedder's, else a plugin's, else the models' own; nullptr
  /// when there is none. Throws Error(plugin) when two plugins have one.
  const Restructuring* restructuring(const std::string& name) const;

  /// Those of plugins, by name, with their calls guarded; filled as they are asked for.
  mutable std::map<std::string, Restructuring> of_plugins;
  mutable std::mutex of_plugins_mutex;
};

/// Of the config ("dtype", "torch_dtype"), else of the first float tensor, else float32.
at::ScalarType model_dtype(const Checkpoint& checkpoint);

}  // namespace graft
