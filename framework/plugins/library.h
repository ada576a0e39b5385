#pragma once

#include <boost/dll/shared_library.hpp>
#include <map>
#include <mutex>
#include <optional>
#include <variant>
#include <vector>

#include "graft/context.h"
#include "graft/plugins.h"
#include "plugins/vetting.h"

namespace graft {

/// Every plugin this process has opened. The one table of the process, never destroyed: plugins are
/// never unloaded, so all hosts share them. Thread-safe; a plugin's init must not search for
/// plugins.
class PluginTable {
 public:
  static PluginTable& of_process();

  /// Opens a file that passed vet(), or gives the library that it is already. Checks, in this
  /// order: 7 its id is not loaded from another file; 8 it loads; 9 its entry and its descriptor;
  /// 10 its claims, its init, a quantizer for each method. One that fails 9 or 10 stays mapped and
  /// inert, and is refused for the same reason ever after.
  std::variant<const PluginLibrary*, Refusal> open(const VettedFile& vetted,
                                                   const Context& context);
  /// nullptr when no usable library has this id.
  const PluginLibrary* find(std::string_view id);
  void shutdown();

 private:
  struct Entry {
    graft_stamp stamp;
    const PluginLibrary* library;  ///< null when it is inert
    Refusal refusal;
  };

  std::optional<Refusal> id_taken(const graft_stamp& stamp) const;
  std::variant<const PluginLibrary*, Refusal> start(const VettedFile& vetted,
                                                    const boost::dll::shared_library& library);

  /// Recursive: what a plugin logs while it starts goes to a callback, which may use graft.
  std::recursive_mutex mutex_;
  bool starting_ = false;
  std::vector<boost::dll::shared_library> mapped_;  ///< one for each entry
  std::map<FileIdentity, Entry> entries_;
  std::vector<const graft_plugin*> started_;  ///< oldest first
  bool shut_down_ = false;
};

}  // namespace graft
