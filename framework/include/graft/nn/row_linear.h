#pragma once

#include <c10/core/ScalarType.h>

#include <memory>

#include "graft/export.h"
#include "graft/nn/row_product.h"

namespace graft::nn {

/// What a linear layer is beside Unary when rows can be multiplied without its forward().
class GRAFT_API RowLinear {
 public:
  virtual ~RowLinear();  // anchors the type_info in libgraft: the host asks modules of plugins

  /// How rows whose values `dtype` holds are multiplied now, which gives the values of forward()
  /// before they are rounded to it; nullptr when only forward() can. Good for as long as the module
  /// lives and is not filled again; call pool().drain() before either ends.
  virtual std::unique_ptr<RowProduct> row_product(at::ScalarType dtype) const = 0;
};

}  // namespace graft::nn
