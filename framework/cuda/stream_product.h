#pragma once

#include <span>

#include "cuda/stream_plan.h"

// Products with few rows: every warp streams tiles of the weight through a ring of its own in
// shared memory and multiplies with mma.m16n8k16, the weight on the left, so that 8 rows of x cost
// no more than one. The warps of a block take steps of inputs in turn. sm_80 and later.

namespace graft::cuda {

cudaError_t multiply_stream(const StreamPlan& plan, const ProductArgs& args, cudaStream_t stream);

/// One launch. `all` as multiply_grouped() takes it, the plan for as many segments.
cudaError_t multiply_stream(const StreamPlan& plan, const ProductArgs& all,
                            std::span<const ProductSegment> segments, cudaStream_t stream);

}  // namespace graft::cuda
