#pragma once

#include <ATen/ops/arange.h>
#include <c10/core/InferenceMode.h>

#include <memory>

#include "graft/model.h"

namespace graft::test {

/// What the model says to the ids 0 to 7.
inline at::Tensor logits(const std::shared_ptr<Model>& model) {
  const c10::InferenceMode guard;
  Batch batch;
  batch.input_ids = at::arange(8, at::kLong).unsqueeze(0);
  return model->forward(batch);
}

}  // namespace graft::test
