#include "kernels/activations.h"

namespace graft::kernels {

std::int64_t row_bytes(const PanelShape& shape, Act act) {
  const std::int64_t width = act == Act::f32 ? 32 : act == Act::a8 ? 8 : 16;
  return shape.steps * width;
}

std::int64_t tile_rows(PanelKind kind, Act act) {
  if (act == Act::a8 && kind != PanelKind::table4) return 12;
  return kind == PanelKind::table4 && (act == Act::a15 || act == Act::a8) ? 5 : 6;
}

std::int64_t row_tile_count(std::int64_t m, std::int64_t most) { return (m + most - 1) / most; }

RowTile row_tile(std::int64_t m, std::int64_t most, std::int64_t index) {
  const std::int64_t count = row_tile_count(m, most), least = m / count, larger = m % count;
  const std::int64_t first = index * least + (index < larger ? index : larger);
  return {first, least + (index < larger ? 1 : 0)};
}

}  // namespace graft::kernels
