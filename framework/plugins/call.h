#pragma once

#include <exception>
#include <string_view>

#include "graft/context.h"
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

/// The same for a call that is given a Context: what a callback of `context` throws is not the
/// plugin's, so it stops the plugin like an interruption and comes out of here as it was thrown.
template <class Call>
auto call_plugin(std::string_view plugin_id, std::string_view doing, const Context& context,
                 Call&& call) {
  std::exception_ptr thrown;
  Context guarded = context;
  if (context.progress)
    guarded.progress = [&](std::string_view stage, std::uint64_t done, std::uint64_t total) {
      try {
        return context.progress(stage, done, total);
      } catch (...) {
        thrown = std::current_exception();
        return false;
      }
    };
  if (context.log)
    guarded.log = [&](LogLevel level, std::string_view component, std::string_view message) {
      try {
        context.log(level, component, message);
      } catch (...) {
        thrown = std::current_exception();
        throw;
      }
    };
  try {
    auto result = call_plugin(plugin_id, doing, [&] { return call(guarded); });
    if (thrown) std::rethrow_exception(thrown);
    return result;
  } catch (...) {
    if (thrown) std::rethrow_exception(thrown);
    throw;
  }
}

}  // namespace graft
