#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "graft/calibration.h"
#include "graft/checkpoint.h"
#include "graft/context.h"
#include "graft/model.h"
#include "graft/model_quantizer.h"
#include "graft/plan.h"
#include "graft/quantizer.h"

namespace graft {

class Journal;
class Ranks;

/// Freed memory goes back to the system when modules of so many bytes were put away since it last
/// did: each time costs the pages of a layer anew.
inline constexpr std::uint64_t kBytesBetweenTrims = 4 << 20;

struct Calibrating {
  Recipe recipe = Recipe::standard;
  /// Experts that are modules of their own see all rows, not only those that the router sends them.
  bool all_experts = false;
  /// Dense weights come from it when their turn comes; null: they are in the model.
  const Checkpoint* checkpoint = nullptr;
  /// Groups that it has are made from its records, the others kept in it; null: none is kept.
  Journal* journal = nullptr;
  /// The processes that do this together, each some of the batches and of the rounding, all with
  /// equal arguments but for the journal: records of rank 0 count, and each rank has a journal or
  /// none has. Null: this one alone.
  Ranks* ranks = nullptr;
  /// Steps of polishing behind each layer (calibrating/polish.h); 0: none. Every method of the plan
  /// must move codes, and the model's class call Batch::around_layer.
  int polish_steps = 0;
  /// Quantizers get ModuleGroup::block_error; it is there for groups in a layer of a class that
  /// calls Batch::around_layer, where the plan has another module of the same parent behind them.
  bool search_by_block = false;
  /// Sees each group before it is quantized; empty: nobody does.
  std::function<void(const ModuleGroup&)> observe{};
};

struct Calibrated {
  std::vector<GroupReport> groups;  ///< in the order they were done
  std::vector<LayerReport> layers;  ///< that were polished
};

/// Converts a model while calibration text runs through it. Every module of the plan that is to be
/// quantized gives way to one that waits for its input; `run(i)` runs the model once over batch i of
/// [0, batches). Where the batches bring an input they wait: once all that get there have, its group
/// (Model::input_groups) is quantized with what their inputs show, and they go on through the
/// quantized modules, so that everything behind sees what it will see when the file is used.
/// Modules that no token reached are quantized without statistics.
///
/// `run` is given what the batch should have as Batch::around_layer; without it, layers cannot be
/// polished. To be polished, tensors of the model and of the run must be none of InferenceMode's.
///
/// All or nothing: when anything throws, the model is as it was. Bits depend neither on the number
/// of threads nor on that of ranks.
GRAFT_API Calibrated quantize_calibrated(
    const std::shared_ptr<nn::Block>& root, const Plan& plan, const Calibrating& how,
    std::int64_t batches,
    const std::function<void(std::int64_t, const Batch::AroundLayer&)>& run,
    const Context& context, const Observer& observer);

/// The strongest need for calibration among the entries that are to be quantized.
GRAFT_API CalibrationUse use_of_calibration(const Plan& plan);

}  // namespace graft
