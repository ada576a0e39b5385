#pragma once

#include <functional>
#include <string>
#include <vector>

#include "graft/host.h"
#include "planning/planner.h"

namespace graft {

/// The settings that hold for a checkpoint, and whether they describe it.
struct Settings {
  Value value;  ///< null: nothing is to be quantized
  bool from_checkpoint = false;
  std::vector<std::string> notes, doubts;  ///< as in Plan
};

/// One of the methods of the loaded plugins.
struct Offer {
  std::string method;
  std::string plugin;
  const Quantizer* quantizer = nullptr;
};

/// Settings of the checkpoint (config.json, else a file of its own that a method's old writers
/// made) and those that were given, reconciled as Transformers does: the checkpoint's win, fields
/// that only say how to run are taken over. `find` finds the method of some settings. Throws
/// Error(usage) when two methods contradict each other, Error(model) for an unreadable file.
Settings find_settings(const Checkpoint& checkpoint, const LoadOptions& options,
                       const std::vector<Offer>& offers,
                       const std::function<Method(const Value&)>& find);

/// Equal, whatever the order of keys: Transformers sorts them, others do not.
bool same_settings(const Value& a, const Value& b);

/// The settings file `name` of the checkpoint's folder; null when there is none.
Value read_settings_file(const Checkpoint& checkpoint, const std::string& name);

}  // namespace graft
