#include "kernels/lanes.h"
#include "kernels/rows.h"

namespace graft::kernels {
namespace {

/// Calls, not inlined: sixteen of everything at every place would take a minute to compile.
struct Level {
  [[gnu::noinline]] static Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) {
    Lanes out;
    for (int i = 0; i < kLanes; ++i) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return out;
  }
  [[gnu::noinline]] static float sum(const Lanes& lanes) {
    Lanes v = lanes;
    for (int width = 8; width > 0; width /= 2)
      for (int i = 0; i < width; ++i) v[i] += v[i + width];
    return v[0];
  }
  [[gnu::noinline]] static Lanes widen_f16(const std::uint16_t* from) {
    Lanes v;
    for (int i = 0; i < kLanes; ++i) {
      _Float16 half;
      __builtin_memcpy(&half, from + i, 2);
      v[i] = static_cast<float>(half);
    }
    return v;
  }
  [[gnu::noinline]] static Lanes round_f16(const Lanes& v) {
    Lanes out;
    for (int i = 0; i < kLanes; ++i) out[i] = static_cast<float>(static_cast<_Float16>(v[i]));
    return out;
  }
};

}  // namespace
}  // namespace graft::kernels

#include "kernels/rows_lanes.h"

namespace graft::kernels {

const RowOperations& row_operations_scalar(ElementType type) { return operations_for(type); }

}  // namespace graft::kernels
