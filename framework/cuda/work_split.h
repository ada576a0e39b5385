#pragma once

#include "cuda/fragments.h"

// How the thread blocks of a product share it: units of work, inputs fastest, are cut into equal
// consecutive ranges, one a block ("stream-K", Osama et al. 2023). The block that has a tile's
// first unit finishes the tile: it adds what later ranges hold of it, in their order, so that a
// result does not depend on which was ready first. Those have lower block indices, which start
// earlier: a block never waits for one that could be waiting for its place.

namespace graft::cuda {

struct WorkSplit {
  int tiles = 0;  ///< of the result
  int steps = 0;  ///< units of a tile
  int ranges = 0;
  /// Tiles that every block computes alone before: in wave i tile i * ranges + range, if there is
  /// one. Blocks go through their inputs side by side then, so that what they share is in the
  /// cache.
  int waves = 0;
  /// Where it is not 0 there are this many ranges for each tile, which share that tile alone.
  int parts = 0;

  GRAFT_HOST_DEVICE int shared_tiles() const {
    return tiles > waves * ranges ? tiles - waves * ranges : 0;
  }
  /// Of the tiles that ranges share.
  GRAFT_HOST_DEVICE int units() const { return shared_tiles() * steps; }
  /// First unit of a range; begin(ranges) is the number of all.
  GRAFT_HOST_DEVICE int begin(int range) const {
    if (parts > 0) return range / parts * steps + range % parts * steps / parts;
    const int each = units() / ranges, more = units() % ranges;
    return range * each + (range < more ? range : more);
  }
  GRAFT_HOST_DEVICE int range_of_block(int block) const { return ranges - 1 - block; }
};

/// What a range does, one tile after the other: units [begin, end) of `tile`. Borrows the split.
struct WorkOfRange {
  int tile = 0, begin = 0, end = 0;

  GRAFT_HOST_DEVICE WorkOfRange(const WorkSplit& split, int range)
      : split_(split), range_(range), unit_(split.begin(range)), last_(split.begin(range + 1)) {}
  /// The next tile; false: there is none.
  GRAFT_HOST_DEVICE bool next() {
    if (wave_ < split_.waves) {
      tile = wave_++ * split_.ranges + range_;
      begin = 0;
      end = split_.steps;
      if (tile < split_.tiles) return true;
    }
    if (unit_ >= last_) return false;
    tile = unit_ / split_.steps;
    begin = unit_ - tile * split_.steps;
    end = begin + last_ - unit_ < split_.steps ? begin + last_ - unit_ : split_.steps;
    unit_ += end - begin;
    tile += split_.waves * split_.ranges;
    return true;
  }
  /// Of a tile that this range finishes: the range after the last one that holds a part of it.
  GRAFT_HOST_DEVICE int end_of_parts() const {
    const int tile_end = (tile - split_.waves * split_.ranges + 1) * split_.steps;
    int after = range_ + 1;
    if (end != split_.steps)
      while (split_.begin(after) < tile_end) ++after;
    return after;
  }

 private:
  const WorkSplit& split_;
  int range_, unit_, last_, wave_ = 0;
};

}  // namespace graft::cuda
