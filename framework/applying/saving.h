#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "graft/checkpoint.h"
#include "graft/nn/block.h"
#include "graft/plan.h"
#include "graft/quant_config.h"
#include "graft/value.h"

namespace graft {

/// A filled model that becomes a folder. Refers to the plan and the checkpoint.
struct ModelToWrite {
  std::shared_ptr<nn::Block> model;
  const Plan& plan;
  /// Where it came from; nullptr: it was made in memory, and not of a quantized checkpoint.
  const Checkpoint* checkpoint;
  Value config;    ///< its config.json, with the settings it came with
  Value settings;  ///< the quantization_config to write; null: none
};

/// The settings of a model that `plan` made, `described` by its method: those of a checkpoint as
/// they came; of what was quantized here, all that other readers need. Throws Error(usage) where
/// the method's files cannot say it.
Value settings_to_write(const Plan& plan, const QuantConfigPtr& config, const Value& described);

/// The model's tensors under their checkpoint names, in plan order, tied ones once. Of a model that
/// was quantized already, tensors that were cast while loading are written as the checkpoint has
/// them, and so are those that nothing took. Refers to `from` and all of it: keep them until they
/// are written.
std::vector<TensorToWrite> tensors_to_write(const ModelToWrite& from);

/// Writes `tensors`, which are those of `from`, with all that belongs to the folder, and commits.
/// `settings_files`: names that settings have beside config.json, of all methods.
void write_model(const ModelToWrite& from, std::vector<TensorToWrite> tensors,
                 const std::set<std::string>& settings_files, FolderWriter& writer);

}  // namespace graft
