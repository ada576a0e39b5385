#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "graft/calibration.h"
#include "graft/checkpoint.h"
#include "graft/context.h"
#include "graft/model_quantizer.h"
#include "graft/plan.h"
#include "graft/quantizer.h"

namespace graft {

class Journal;

struct Calibrating {
  Recipe recipe = Recipe::standard;
  /// Dense weights come from it when their turn comes; null: they are in the model.
  const Checkpoint* checkpoint = nullptr;
  /// Groups that it has are made from its records, the others kept in it; null: none is kept.
  Journal* journal = nullptr;
};

/// Converts a model while calibration text runs through it. Every module of the plan that is to be
/// quantized gives way to one that waits for its input; `run` runs the model once over all of the
/// text, as one batch; where an input arrives, its group (Model::input_groups) is quantized with
/// what the input shows and answers with the quantized modules, so that everything behind it sees
/// what it will see when the file is used. Modules that no token reached are quantized without
/// statistics.
///
/// All or nothing: when anything throws, the model is as it was. Gives the groups in the order they
/// were done. Bits do not depend on the number of threads.
GRAFT_API std::vector<GroupReport> quantize_calibrated(const std::shared_ptr<nn::Block>& root,
                                                       const Plan& plan, const Calibrating& how,
                                                       const std::function<void()>& run,
                                                       const Context& context,
                                                       const Observer& observer);

/// The strongest need for calibration among the entries that are to be quantized.
GRAFT_API CalibrationUse use_of_calibration(const Plan& plan);

/// Mean of x x^T over the rows of x [.., K]: [K, K] float32.
GRAFT_API at::Tensor second_moment(const at::Tensor& x);

}  // namespace graft
