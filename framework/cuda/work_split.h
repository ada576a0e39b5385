#pragma once

#include "cuda/fragments.h"

// How the thread blocks of a product share it: units of work, inputs fastest, are cut into equal
// consecutive ranges, one a block ("stream-K", Osama et al. 2023). The block that has a tile's first
// unit finishes the tile: it adds what later ranges hold of it, in their order, so that a result does
// not depend on which was ready first. Those have lower block indices, which start earlier: a block
// never waits for one that could be waiting for its place.

namespace graft::cuda {

struct WorkSplit {
  int tiles = 0;  ///< of the result
  int steps = 0;  ///< units of a tile
  int ranges = 0;

  GRAFT_HOST_DEVICE int units() const { return tiles * steps; }
  /// First unit of a range; begin(ranges) is the number of all.
  GRAFT_HOST_DEVICE int begin(int range) const {
    const int each = units() / ranges, more = units() % ranges;
    return range * each + (range < more ? range : more);
  }
  GRAFT_HOST_DEVICE int range_of_block(int block) const { return ranges - 1 - block; }
};

}  // namespace graft::cuda
