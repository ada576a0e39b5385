#include "calibrating/second_moment.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "graft/pool.h"
#include "kernels/gram.h"

namespace graft {
namespace {

constexpr std::int64_t kSide = kernels::kGramColumns;
constexpr std::int64_t kRows = 2048;  ///< in panels at once

std::int64_t panels_of(std::int64_t k) { return (k + kSide - 1) / kSide; }

/// Where the tiles of a row of tiles begin.
std::int64_t first_tile(std::int64_t row, std::int64_t panels) {
  return row * panels - row * (row - 1) / 2;
}

/// Where a node divides; its first half is full.
std::int64_t middle(const BatchRange& node) {
  std::int64_t half = 1;
  while (2 * half < node.last - node.first) half *= 2;
  return node.first + half;
}

constexpr std::int64_t kPiece = 64;  ///< rows that one job of the pool puts into panels

/// The rows x [R, K] as float32 in panels [panels][R][48], zeros behind the last column.
void fill_panels(const at::Tensor& x, float* panels) {
  const auto rows = x.size(0), k = x.size(1);
  for_each_chunk(pool(), (rows + kPiece - 1) / kPiece, [&](std::int64_t piece) {
    const c10::InferenceMode guard;
    const auto first = piece * kPiece, some = std::min(kPiece, rows - first);
    const auto values = x.narrow(0, first, some).to(at::kFloat).contiguous();
    const auto* from = values.const_data_ptr<float>();
    for (std::int64_t row = 0; row < some; ++row)
      for (std::int64_t c = 0; c < k; c += kSide) {
        auto* to = panels + (c / kSide * rows + first + row) * kSide;
        const auto width = std::min(kSide, k - c);
        std::copy_n(from + row * k + c, width, to);
        std::fill_n(to + width, kSide - width, 0.0F);
      }
  });
}

/// The rows x [R, K] of bfloat16 in panels of pairs [panels][(R + 1) / 2][48], zeros behind the last
/// column and the last row.
void fill_panels(const at::Tensor& x, std::uint32_t* panels) {
  const auto rows = x.size(0), k = x.size(1), pairs = (rows + 1) / 2;
  for_each_chunk(pool(), (rows + kPiece - 1) / kPiece, [&](std::int64_t piece) {
    const c10::InferenceMode guard;
    const auto first = piece * kPiece, some = std::min(kPiece, rows - first);
    const auto values = x.narrow(0, first, some).contiguous();
    const auto* from = reinterpret_cast<const std::uint16_t*>(values.const_data_ptr());
    for (std::int64_t row = 0; row < some; row += 2)
      for (std::int64_t c = 0; c < k; c += kSide) {
        auto* to = panels + (c / kSide * pairs + (first + row) / 2) * kSide;
        const auto width = std::min(kSide, k - c);
        const auto* earlier = from + row * k + c;
        for (std::int64_t i = 0; i < width; ++i)
          to[i] = static_cast<std::uint32_t>(earlier[i]) << 16;
        if (row + 1 < some)
          for (std::int64_t i = 0; i < width; ++i) to[i] |= earlier[k + i];
        std::fill_n(to + width, kSide - width, 0U);
      }
  });
}

/// Adds the products of all pairs of panels, each `height` words high, to the tiles.
template <class Word, class Tile>
void add_products(const Word* words, std::int64_t height, std::int64_t panels, Tile tile,
                  float* tiles) {
  // The longest rows of tiles come first, so that none is left for the end.
  for_each_chunk(pool(), panels, [&](std::int64_t i) {
    for (std::int64_t j = i; j < panels; ++j)
      tile(words + i * height * kSide, words + j * height * kSide, height,
           tiles + (first_tile(i, panels) + j - i) * kSide * kSide);
  });
}

/// Of one batch x [R, K], R > 0.
at::Tensor sum_of_batch(const at::Tensor& x) {
  const auto panels = panels_of(x.size(1));
  auto sum = at::zeros({moment_tiles(x.size(1)), kSide, kSide}, at::kFloat);
  auto* tiles = sum.mutable_data_ptr<float>();
  const auto level = kernels::cpu_level();
  const auto pair_tile =
      x.scalar_type() == at::kBFloat16 ? kernels::gram_pair_tile(level) : nullptr;
  const auto most = std::min(kRows, x.size(0));
  auto packed = at::empty({panels, pair_tile ? (most + 1) / 2 : most, kSide},
                          pair_tile ? at::kInt : at::kFloat);
  auto* words = packed.mutable_data_ptr();
  for (std::int64_t first = 0; first < x.size(0); first += kRows) {
    const auto rows = std::min(kRows, x.size(0) - first);
    const auto some = x.narrow(0, first, rows);
    if (pair_tile) {
      auto* pairs = static_cast<std::uint32_t*>(words);
      fill_panels(some, pairs);
      add_products(pairs, (rows + 1) / 2, panels, pair_tile, tiles);
    } else {
      auto* values = static_cast<float*>(words);
      fill_panels(some, values);
      add_products(values, rows, panels, kernels::gram_tile(level), tiles);
    }
  }
  return sum;
}

at::Tensor added(at::Tensor sum, const at::Tensor& other) {
  if (!sum.defined()) return other;
  return other.defined() ? sum.add_(other) : sum;
}

/// The node's sum, of those of the nodes in it, in whose memory it is made.
at::Tensor add_up(const BatchRange& node, const std::vector<BatchRange>& nodes,
                  std::vector<at::Tensor>& sums) {
  const auto found = std::find(nodes.begin(), nodes.end(), node);
  if (found != nodes.end()) return std::move(sums[static_cast<std::size_t>(found - nodes.begin())]);
  const auto half = middle(node);
  auto left = add_up({node.first, half}, nodes, sums);
  return added(std::move(left), add_up({half, node.last}, nodes, sums));
}

void append_nodes(const BatchRange& node, const BatchRange& held, std::vector<BatchRange>& out) {
  if (node.first >= held.last || node.last <= held.first) return;
  if (node.first >= held.first && node.last <= held.last) return out.push_back(node);
  const auto half = middle(node);
  append_nodes({node.first, half}, held, out);
  append_nodes({half, node.last}, held, out);
}

}  // namespace

std::int64_t moment_tiles(std::int64_t k) { return first_tile(panels_of(k), panels_of(k)); }

std::vector<BatchRange> nodes_of(std::int64_t batches, const BatchRange& held) {
  std::vector<BatchRange> out;
  append_nodes({0, batches}, held, out);
  return out;
}

at::Tensor sum_of_products(const std::vector<at::Tensor>& inputs, const BatchRange& node) {
  if (node.last - node.first > 1) {
    const auto half = middle(node);
    const auto left = inputs.begin() + (half - node.first);
    auto sum = sum_of_products({inputs.begin(), left}, {node.first, half});
    return added(std::move(sum), sum_of_products({left, inputs.end()}, {half, node.last}));
  }
  const auto& x = inputs.front();
  if (!x.defined() || x.numel() == 0) return {};
  return sum_of_batch(x.reshape({-1, x.size(-1)}));
}

at::Tensor second_moment(std::int64_t k, std::int64_t batches,
                         const std::vector<BatchRange>& nodes, std::vector<at::Tensor> sums,
                         std::int64_t rows) {
  const auto sum = add_up({0, batches}, nodes, sums);
  if (!sum.defined()) return sum;
  auto h = at::empty({k, k}, at::kFloat);
  const auto panels = panels_of(k);
  const auto* tiles = sum.const_data_ptr<float>();
  auto* to = h.mutable_data_ptr<float>();
  const auto count = static_cast<float>(rows);
  for_each_chunk(pool(), panels, [&](std::int64_t row) {
    const auto height = std::min(kSide, k - row * kSide);
    for (auto column = row; column < panels; ++column) {
      const auto width = std::min(kSide, k - column * kSide);
      const auto* tile = tiles + (first_tile(row, panels) + column - row) * kSide * kSide;
      auto* block = to + row * kSide * k + column * kSide;
      auto* mirrored = to + column * kSide * k + row * kSide;
      for (std::int64_t i = 0; i < height; ++i)
        for (std::int64_t j = 0; j < width; ++j) block[i * k + j] = tile[i * kSide + j] / count;
      for (std::int64_t j = 0; j < width; ++j)
        for (std::int64_t i = 0; i < std::min(height, column == row ? j : kSide); ++i)
          mirrored[j * k + i] = tile[i * kSide + j] / count;
    }
  });
  return h;
}

at::Tensor second_moment(const std::vector<at::Tensor>& inputs) {
  const auto batches = static_cast<std::int64_t>(inputs.size());
  std::int64_t rows = 0, k = 0;
  for (const auto& x : inputs) {
    if (!x.defined() || x.numel() == 0) continue;
    k = x.size(-1);
    rows += x.numel() / k;
  }
  if (rows == 0) return {};
  return second_moment(k, batches, {{0, batches}}, {sum_of_products(inputs, {0, batches})}, rows);
}

}  // namespace graft
