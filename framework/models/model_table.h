#pragma once

#include "graft/model.h"

namespace graft {

// One line a model_type here, one in the table of model_table.cpp, one file for the architecture.
std::shared_ptr<Model> make_bert(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_llama(const Value& config, const at::TensorOptions& options);

}  // namespace graft
