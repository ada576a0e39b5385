#pragma once

#include <algorithm>
#include <cstring>
#include <exception>
#include <iterator>
#include <mutex>
#include <new>
#include <string_view>

#include "graft/error.h"
#include "graft/plugin_abi.h"
#include "graft/quantizer.h"
#include "graft/restructuring.h"
#include "graft/runtime.h"
#include "graft/stamp.h"

/// What a plugin's author includes. A plugin.cpp is a table of contents:
///
///   #include "graft/plugin.h"
///   #include "ops.h"
///   #include "ternary_quantizer.h"
///
///   namespace org::example::ternary {  // a namespace of its own: types are compared by name
///   struct Plugin {
///     static constexpr const char* summary = "ternary weights, one scale a row";
///     static constexpr graft_claim claims[] = {
///         // method, module class, device, priority
///         {"ternary", "Linear", "cpu", 0},
///     };
///     static constexpr graft_kernel kernels[] = {  // optional
///         {"example_ternary::linear", "cpu", "avx2,fma"},
///     };
///     static void init(const graft::Runtime& runtime) { register_operators(); }
///     static const graft::Quantizer* quantizer(std::string_view method) {
///       static const TernaryQuantizer ternary;
///       return method == "ternary" ? &ternary : nullptr;
///     }
///     // optional: replacements that registry rules may name, built from the model's text config
///     static const graft::Restructuring* restructuring(std::string_view name);
///     static void shutdown() {}  // optional
///   };
///   }  // namespace org::example::ternary
///
///   GRAFT_PLUGIN(org::example::ternary::Plugin, "org.example.ternary", "0.1.0");
///
/// claims and kernels are constants, so that listing a plugin runs none of its logic.
///
/// init runs once, before anything else, and may throw: the plugin is then refused with the
/// message. Operators are registered here, through torch::Library objects that are allocated and
/// never freed, not by the TORCH_LIBRARY macros: those run while the library is being loaded,
/// where a clash ends the process. Without a host (Python) init is all that runs. `runtime` lives
/// as long as the process.
///
/// quantizer gives the logic of a method, one object for the process, or nullptr; any thread may
/// call it. Every claimed method has one.
///
/// restructuring gives the builder of a replacement that keeps the values and changes the graph,
/// one object for the process, or nullptr; any thread may call it and its functions.
///
/// shutdown runs once, from graft::shutdown(): join threads. Nothing is ever unloaded, and no work
/// belongs in static constructors or destructors.
#define GRAFT_PLUGIN(Plugin, id, version)                                                         \
  namespace {                                                                                     \
  GRAFT_STAMP_NOTE(graft_note,                                                                    \
                   ::graft::stamp_of_this_build(id, version, GRAFT_PLUGIN_CUDA_VERSION));         \
  }                                                                                               \
  extern "C" const graft_plugin* graft_plugin_entry(uint32_t host_abi_major, uint32_t) noexcept { \
    return host_abi_major == GRAFT_ABI_MAJOR                                                      \
               ? &::graft::PluginEntry<Plugin, graft_note>::kDescriptor                           \
               : nullptr;                                                                         \
  }                                                                                               \
  static_assert(true, "")

/// CUDA_VERSION of the kernels inside, 0 for none.
#ifndef GRAFT_PLUGIN_CUDA_VERSION
#define GRAFT_PLUGIN_CUDA_VERSION 0
#endif

namespace graft {

/// The C side of `Plugin`: its descriptor, and the wrappers that keep exceptions from crossing the
/// border. GRAFT_PLUGIN makes one in each plugin.
template <class Plugin, const graft_stamp_note& note>
class PluginEntry {
  static graft_status init(const graft_host* host, graft_error* error) noexcept {
    static constinit std::mutex mutex;
    static constinit bool done = false;
    try {
      const std::lock_guard lock(mutex);
      if (host) runtime().attach(host);  // Python may have come before the host
      if (!done) Plugin::init(static_cast<const Runtime&>(runtime()));
      done = true;
      return GRAFT_OK;
    } catch (const Error& thrown) {
      return fail(error, thrown.what(), status_of(thrown.kind()));
    } catch (const std::bad_alloc&) {
      return fail(error, "out of memory", GRAFT_NO_RESOURCE);
    } catch (const std::exception& thrown) {
      return fail(error, thrown.what(), GRAFT_INTERNAL);
    } catch (...) {
      return fail(error, "an exception of unknown type", GRAFT_INTERNAL);
    }
  }

  static void* query(const char* interface_id, const char* argument) noexcept {
    if (!interface_id || !argument) return nullptr;
    try {
      if (std::string_view(interface_id) == kQuantizerInterface) {
        const Quantizer* quantizer = Plugin::quantizer(std::string_view(argument));
        return const_cast<Quantizer*>(quantizer);
      }
      if constexpr (requires { Plugin::restructuring(std::string_view{}); })
        if (std::string_view(interface_id) == kRestructuringInterface) {
          const Restructuring* restructuring = Plugin::restructuring(std::string_view(argument));
          return const_cast<Restructuring*>(restructuring);
        }
    } catch (const std::exception& thrown) {
      runtime().log(LogLevel::error, thrown.what());
    } catch (...) {
      runtime().log(LogLevel::error, "query threw an exception of unknown type");
    }
    return nullptr;
  }

  static void shutdown() noexcept {
    if constexpr (requires { Plugin::shutdown(); }) {
      try {
        Plugin::shutdown();
      } catch (const std::exception& thrown) {
        runtime().log(LogLevel::error, thrown.what());
      } catch (...) {
        runtime().log(LogLevel::error, "shutdown threw an exception of unknown type");
      }
    }
  }

  /// The first line of `what`: what follows in a c10::Error is a backtrace.
  static graft_status fail(graft_error* error, const char* what, graft_status status) noexcept {
    if (error && error->size >= sizeof(graft_error)) {
      const std::size_t length = std::min(std::strcspn(what, "\n"), sizeof(error->message) - 1);
      std::memcpy(error->message, what, length);
      error->message[length] = '\0';
    }
    return status;
  }

  static graft_status status_of(ErrorKind kind) noexcept {
    switch (kind) {
      case ErrorKind::model:
        return GRAFT_BAD_INPUT;
      case ErrorKind::usage:
        return GRAFT_BAD_CONFIG;
      case ErrorKind::resource:
        return GRAFT_NO_RESOURCE;
      default:
        return GRAFT_INTERNAL;
    }
  }

  static Runtime& runtime() noexcept {
    static constinit Runtime instance(note.stamp.id);
    return instance;
  }

  static constexpr graft_plugin describe() noexcept {
    graft_plugin plugin{};
    plugin.size = sizeof(graft_plugin);
    plugin.stamp = &note.stamp;
    plugin.summary = Plugin::summary;
    plugin.claims = std::data(Plugin::claims);
    plugin.claim_count = static_cast<std::uint32_t>(std::size(Plugin::claims));
    if constexpr (requires { Plugin::kernels; }) {
      plugin.kernels = std::data(Plugin::kernels);
      plugin.kernel_count = static_cast<std::uint32_t>(std::size(Plugin::kernels));
    }
    plugin.init = &init;
    plugin.shutdown = &shutdown;
    plugin.query = &query;
    return plugin;
  }

 public:
  static constexpr graft_plugin kDescriptor = describe();
};

}  // namespace graft
