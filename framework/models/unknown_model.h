#pragma once

#include <memory>

#include "graft/checkpoint.h"
#include "graft/model.h"

namespace graft {

/// Whether build_model has the architecture that `config` describes.
bool is_known_architecture(const Value& config);

/// A model that stands for a checkpoint of an architecture that graft does not have: its modules
/// are what the tensors' names say, its matrices those whose names and shapes leave no doubt. It
/// can be planned, quantized without calibration and saved, not run: forward throws Error(model).
/// `config` may lack everything but what it says of the vocabulary.
std::shared_ptr<Model> build_unknown_model(const Checkpoint& checkpoint);

}  // namespace graft
