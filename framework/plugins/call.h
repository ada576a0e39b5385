#pragma once

#include <string_view>

#include "graft/export.h"

namespace graft {

/// Rethrows the exception being handled, which came out of the plugin with this id while `doing`
/// something: an Error about the model, the call, a resource or an interruption as it is, at
/// the place that `doing` names and naming the plugin; memory that ran out as Error(resource);
/// anything else as Error(plugin) with the file and what to do.
[[noreturn]] GRAFT_API void rethrow_from_plugin(std::string_view plugin_id, std::string_view doing);

/// The one way the host calls a plugin's C++: what it throws comes out as above. `doing` names the
/// step and its subject for people: "building model.layers.0.mlp.up_proj".
template <class Call>
decltype(auto) call_plugin(std::string_view plugin_id, std::string_view doing, Call&& call) {
  try {
    return call();
  } catch (...) {
    rethrow_from_plugin(plugin_id, doing);
  }
}

}  // namespace graft
