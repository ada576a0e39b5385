#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "graft/export.h"

namespace graft {

/// A method's settings after Quantizer::parse: validated and complete, so that nobody reads JSON
/// afterwards. A plugin derives its own type, in its own namespace, and gets the same object back.
/// Immutable and shared between threads.
class GRAFT_API QuantConfig : public std::enable_shared_from_this<QuantConfig> {
 public:
  virtual ~QuantConfig();

  /// One line for people: "4 bit g128 sym".
  virtual std::string summary() const = 0;

  /// The settings of one module: this, a variant of it, or nullptr when the settings themselves
  /// leave the module dense. `names` are its path in the model, then what checkpoints may call it.
  virtual std::shared_ptr<const QuantConfig> for_module(std::span<const std::string> names) const;

  /// Modules that the settings keep dense, matched as Transformers matches its
  /// modules_to_not_convert; added to the defaults.
  std::vector<std::string> skip;
  /// Settings that nobody uses, listed for the user.
  std::vector<std::string> unknown_fields;
};

using QuantConfigPtr = std::shared_ptr<const QuantConfig>;

}  // namespace graft
