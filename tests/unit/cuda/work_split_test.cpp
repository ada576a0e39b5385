#include "cuda/work_split.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <vector>

using namespace graft::cuda;

namespace {

struct Part {
  int range, begin, end, end_of_parts;
};

/// Splits whose tiles are each shared by so many ranges alone.
template <class Check>
void each_split_in_parts(const Check& check) {
  for (const int tiles : {1, 2, 7, 64})
    for (const int steps : {8, 11, 64})
      for (const int parts : {1, 2, 4, 8}) {
        CAPTURE(tiles);
        CAPTURE(steps);
        CAPTURE(parts);
        check(WorkSplit{tiles, steps, tiles * parts, 0, parts});
      }
}

/// Many splits; with more ranges than units, and with waves that are not full, too.
template <class Check>
void each_split(const Check& check) {
  each_split_in_parts(check);
  for (const int tiles : {1, 2, 3, 7, 16, 33, 132, 200})
    for (const int steps : {1, 2, 5, 12, 64})
      for (const int ranges : {1, 2, 3, 7, 32, 108, 132})
        for (int waves = 0; (waves - 1) * ranges < tiles && waves < 4; ++waves) {
          CAPTURE(tiles);
          CAPTURE(steps);
          CAPTURE(ranges);
          CAPTURE(waves);
          check(WorkSplit{tiles, steps, ranges, waves});
        }
}

/// The parts of every tile in the order of ranges; what a block does goes by block index.
std::map<int, std::vector<Part>> parts_of(const WorkSplit& split) {
  std::map<int, std::vector<Part>> out;
  for (int range = 0; range < split.ranges; ++range)
    for (WorkOfRange work(split, range); work.next();)
      out[work.tile].push_back(
          {range, work.begin, work.end, work.begin == 0 ? work.end_of_parts() : 0});
  return out;
}

}  // namespace

TEST_CASE("ranges do every unit of work exactly once") {
  each_split([](const WorkSplit& split) {
    std::vector<int> done(static_cast<std::size_t>(split.tiles * split.steps));
    for (int range = 0; range < split.ranges; ++range)
      for (WorkOfRange work(split, range); work.next();) {
        REQUIRE(work.tile >= 0);
        REQUIRE(work.tile < split.tiles);
        REQUIRE(work.begin >= 0);
        REQUIRE(work.begin < work.end);
        REQUIRE(work.end <= split.steps);
        for (int unit = work.begin; unit < work.end; ++unit) ++done[work.tile * split.steps + unit];
      }
    REQUIRE(done == std::vector<int>(done.size(), 1));
  });
}

TEST_CASE("ranges are equal but for one unit") {
  each_split([](const WorkSplit& split) {
    int least = split.units(), most = 0;
    for (int range = 0; range < split.ranges; ++range) {
      const int units = split.begin(range + 1) - split.begin(range);
      least = std::min(least, units);
      most = std::max(most, units);
    }
    REQUIRE(most - least <= 1);
    REQUIRE(split.begin(0) == 0);
    REQUIRE(split.begin(split.ranges) == split.units());
  });
}

TEST_CASE("the range that has a tile's first unit knows which ranges have the rest") {
  each_split([](const WorkSplit& split) {
    for (const auto& [tile, parts] : parts_of(split)) {
      REQUIRE(parts.front().begin == 0);
      REQUIRE(parts.front().end_of_parts == parts.back().range + 1);
      // They are consecutive and in the order of inputs, so sums have one order.
      for (std::size_t i = 1; i < parts.size(); ++i) {
        REQUIRE(parts[i].range == parts[i - 1].range + 1);
        REQUIRE(parts[i].begin == parts[i - 1].end);
      }
      REQUIRE(parts.back().end == split.steps);
    }
  });
}

TEST_CASE("a range holds at most one part that another range finishes, before all that it shares") {
  each_split([](const WorkSplit& split) {
    for (int range = 0; range < split.ranges; ++range) {
      int unfinished = 0, shared = 0;
      for (WorkOfRange work(split, range); work.next();) {
        const bool whole = work.begin == 0 && work.end == split.steps;
        if (work.begin != 0) {
          ++unfinished;
          REQUIRE(shared == 0);
        }
        if (!whole) ++shared;
      }
      REQUIRE(unfinished <= 1);
    }
  });
}

TEST_CASE("no block waits for one of a higher index") {
  each_split([](const WorkSplit& split) {
    std::vector<int> blocks(static_cast<std::size_t>(split.ranges));
    for (int block = 0; block < split.ranges; ++block) {
      const int range = split.range_of_block(block);
      REQUIRE(range >= 0);
      REQUIRE(range < split.ranges);
      blocks[range] = block;
    }
    REQUIRE(split.range_of_block(blocks[0]) == 0);
    for (const auto& [tile, parts] : parts_of(split))
      for (std::size_t i = 1; i < parts.size(); ++i)
        REQUIRE(blocks[parts[i].range] < blocks[parts[0].range]);
  });
}

TEST_CASE("tiles that blocks compute alone come first, and none of them is shared") {
  each_split([](const WorkSplit& split) {
    for (int range = 0; range < split.ranges; ++range) {
      WorkOfRange work(split, range);
      for (int wave = 0; wave < split.waves; ++wave) {
        if (wave * split.ranges + range >= split.tiles) continue;
        REQUIRE(work.next());
        REQUIRE(work.tile == wave * split.ranges + range);
        REQUIRE(work.begin == 0);
        REQUIRE(work.end == split.steps);
        REQUIRE(work.end_of_parts() == range + 1);
      }
    }
  });
}

TEST_CASE("the blocks of a cluster have one tile, and each a part of it") {
  each_split_in_parts([](const WorkSplit& split) {
    for (int block = 0; block < split.ranges; ++block) {
      const int range = split.range_of_block(block);
      WorkOfRange work(split, range);
      REQUIRE(work.next());
      REQUIRE(work.tile == (split.ranges - 1 - block) / split.parts);
      // The kernel knows from a part which block of the cluster has it.
      REQUIRE(block % split.parts == split.parts - 1 - range % split.parts);
      REQUIRE_FALSE(work.next());
    }
  });
}
