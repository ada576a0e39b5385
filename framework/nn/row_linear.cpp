#include "graft/nn/row_linear.h"

namespace graft::nn {

RowLinear::~RowLinear() = default;

}  // namespace graft::nn
