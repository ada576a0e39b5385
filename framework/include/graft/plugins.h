#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "graft/context.h"
#include "graft/export.h"
#include "graft/plugin_abi.h"

namespace graft {

class Quantizer;

/// One opened plugin: exists only if its stamp, its entry and its init all passed. Lives as long as
/// the process, shared by all who find it, never closed. Thread-safe.
class GRAFT_API PluginLibrary {
 public:
  PluginLibrary(const PluginLibrary&) = delete;
  PluginLibrary& operator=(const PluginLibrary&) = delete;

  const std::filesystem::path& file() const { return file_; }  ///< absolute, canonical
  std::string_view id() const { return plugin_->stamp->id; }   ///< "org.example.ternary"
  std::string_view version() const { return plugin_->stamp->version; }
  std::string_view summary() const { return plugin_->summary; }
  std::span<const graft_claim> claims() const { return {plugin_->claims, plugin_->claim_count}; }
  std::span<const graft_kernel> kernels() const {
    return {plugin_->kernels, plugin_->kernel_count};
  }
  /// The plugin's own rules, a file beside the library with the ending .yaml.
  const std::optional<std::filesystem::path>& registry_file() const { return registry_file_; }

  /// The logic of a method it claims, else nullptr. Call its functions through call_plugin.
  const Quantizer* quantizer(const std::string& method) const;
  /// The object behind any interface id, else nullptr.
  void* query(const char* interface_id, const char* argument) const {
    return plugin_->query(interface_id, argument);
  }

 private:
  friend class PluginTable;
  PluginLibrary(std::filesystem::path file, const graft_plugin* plugin);

  std::filesystem::path file_;
  const graft_plugin* plugin_;
  std::optional<std::filesystem::path> registry_file_;
};

/// Where to look for plugins, in this order.
struct PluginSearch {
  std::vector<std::filesystem::path> files;
  std::vector<std::filesystem::path> directories;  ///< their *.so files, sorted, not recursive
  /// Then the folders of GRAFT_PLUGIN_PATH (ignored when the program is setuid), graft/plugins
  /// beside libgraft.so, and the installed ones. Never the current directory.
  bool use_default_path = true;
  /// Skips the check that nobody else may write to a plugin and its folder; nothing else.
  bool allow_insecure = false;
};

/// What became of one file that was looked at.
struct PluginVerdict {
  std::filesystem::path file;  ///< as it was found; a folder when that could not be read
  bool named = false;          ///< the search named it; otherwise it lay in a folder
  bool loaded = false;
  std::string id, version;  ///< empty when the stamp could not be read
  std::string reason;       ///< why it was refused, one sentence with the way out
};

/// The plugins that a search found. A value: cheap to copy, safe to outlive.
class GRAFT_API Plugins {
 public:
  /// Vets every file and opens those that pass. A refused plugin is a verdict, not an error; the
  /// others keep working. What a plugin says while it starts goes to `context`.
  static Plugins find(const PluginSearch& search, const Context& context = {});

  const std::vector<PluginVerdict>& verdicts() const { return verdicts_; }  ///< search order
  /// Search order, each once.
  const std::vector<const PluginLibrary*>& libraries() const { return libraries_; }

 private:
  std::vector<PluginVerdict> verdicts_;
  std::vector<const PluginLibrary*> libraries_;
};

/// What a file says of itself, read without running any of it. Throws Error(plugin) naming the file
/// when it is no plugin, Error(resource) when it cannot be read.
GRAFT_API graft_stamp read_stamp(const std::filesystem::path& file);

/// Where plugins' messages go outside of a search; without this they are dropped. Called from any
/// thread.
GRAFT_API void set_plugin_log(
    std::function<void(LogLevel level, std::string_view component, std::string_view message)> log);

/// Runs every plugin's shutdown, newest first, once for the process. Call it when no job runs and
/// none will; plugins stay mapped, but later searches refuse them. Thread-safe.
GRAFT_API void shutdown();

}  // namespace graft
