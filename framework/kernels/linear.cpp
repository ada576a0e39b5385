#include "kernels/linear.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "kernels/row_products.h"
#include "kernels/scratch.h"
#include "kernels/slab.h"
#include "kernels/tiles.h"

namespace graft::kernels {
namespace {

/// Rows that are prepared and multiplied at a time: they stay in the second-level cache.
constexpr std::int64_t kRowsAtOnce = 120;
/// Rows from which a bf16 slab is worth its decoding.
constexpr std::int64_t kSlabFrom = 16;
/// Rows up to which a call is a staged job of the pool.
constexpr std::int64_t kStagedRows = 16;
/// Packed weights of a chunk: long enough to stream, short enough to lose.
constexpr std::int64_t kChunkBytes = 64 << 10;

struct Functions {
  PrepareRowFn prepare;
  TileFn tile;
  void (*store)(const float*, const float*, std::int64_t, ElementType, void*);
};

Functions functions_of(CpuLevel level, Act act) {
#if defined(__x86_64__)
  if (level == CpuLevel::avx512)
    return {&prepare_row_avx2, act == Act::bf16 ? &run_tile_bf16_avx512bf16 : &run_tile_avx512,
            &store_row_avx2};
  if (level == CpuLevel::avx2) return {&prepare_row_avx2, &run_tile_avx2, &store_row_avx2};
#else
  (void)level;
  (void)act;
#endif
  return {&prepare_row_scalar, &run_tile_scalar, &store_row_scalar};
}

/// All that a chunk needs besides weights: plain data, so that it can be copied.
struct Job {
  PanelWeight weight;
  Functions functions;
  Act act;
  bool slab;
  std::int64_t m, most_rows;  ///< of this call; of a tile
  std::int64_t panels_of_chunk;
  std::uint8_t table_high[16], table_low[16];
  float factor;
  PreparedRows rows;
};

struct Sizes {
  std::int64_t values, scales, sums, total;
};

Sizes sizes_of(const PanelShape& shape, Act act, std::int64_t m) {
  Sizes sizes{};
  sizes.values = round_up_64(m * row_bytes(shape, act));
  sizes.scales = round_up_64(m * shape.blocks * 4);
  const bool integer = act == Act::a15 || act == Act::a8;
  sizes.sums = integer ? round_up_64(m * shape.blocks * 8) : 0;
  sizes.total = sizes.values + sizes.scales + sizes.sums;
  return sizes;
}

Job make_job(CpuLevel level, const LinearArgs& args, std::int64_t threads) {
  Job job{};
  job.weight = *args.weight;
  const PanelShape& shape = job.weight.shape;
  job.act = args.act;
  if (job.act == Act::bf16) {
    const bool dots = level == CpuLevel::avx512 && cpu_has_bf16_dot();
    job.slab = dots && args.m >= kSlabFrom;
    if (level != CpuLevel::scalar && (!dots || (shape.kind == PanelKind::int8 && !job.slab)))
      job.act = Act::f32;
  }
  job.factor = 1;
  const bool integer = job.act == Act::a15 || job.act == Act::a8;
  if (shape.kind == PanelKind::table4 && integer) {
    float factor = 1;
    if (split_table(job.weight.table, job.table_high, job.table_low, &factor))
      job.factor = factor * (job.act == Act::a15 ? 256.0F : 1.0F);
    else
      job.act = Act::f32;
  }
  job.functions = functions_of(level, job.act);
  job.most_rows = job.slab ? kSlabRows : tile_rows(shape.kind, job.act);
  // At least eight chunks for a thread, so that none waits long for another.
  const std::int64_t share = threads > 1 ? shape.panels / (8 * threads) : shape.panels;
  const std::int64_t pairs = std::min(kChunkBytes / shape.panel_bytes, share) / kTilePanels;
  job.panels_of_chunk = kTilePanels * std::max<std::int64_t>(pairs, 1);
  return job;
}

/// Points the prepared rows of `job` at `memory`.
void place_rows(Job& job, std::byte* memory, std::int64_t m) {
  const Sizes sizes = sizes_of(job.weight.shape, job.act, m);
  job.m = m;
  job.rows.m = m;
  job.rows.values = reinterpret_cast<std::uint8_t*>(memory);
  job.rows.scales = reinterpret_cast<float*>(memory + sizes.values);
  job.rows.sums = reinterpret_cast<std::int32_t*>(memory + sizes.values + sizes.scales);
  job.rows.float_sums = job.rows.scales;
}

std::int64_t scratch_bytes(const PanelShape& shape) { return round_up_64(shape.steps * kStep * 4); }

std::int64_t element_bytes(ElementType type) { return type == ElementType::f32 ? 4 : 2; }

/// Rows of one tile of the call, whose first row is `first` of args.x.
void prepare_tile(const Job& job, const LinearArgs& args, std::int64_t first, std::int64_t index,
                  float* scratch) {
  const PanelShape& shape = job.weight.shape;
  const RowTile tile = row_tile(job.m, job.most_rows, index);
  const std::int64_t width = row_bytes(shape, job.act) / shape.steps;
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    PrepareRow row{};
    row.shape = &shape;
    row.act = job.act;
    row.type = args.x_type;
    row.x = static_cast<const char*>(args.x) +
            (first + tile.first + r) * args.x_stride * element_bytes(args.x_type);
    row.order = job.weight.order;
    row.factor = job.factor;
    row.rows = tile.rows;
    row.values = job.rows.values + tile.first * row_bytes(shape, job.act) + r * width;
    row.scales = job.rows.scales + tile.first * shape.blocks + r;
    row.sums = job.rows.sums + 2 * (tile.first * shape.blocks + r);
    row.float_sums = row.scales;
    row.scratch = scratch;
    job.functions.prepare(row);
  }
}

/// Panels [first, first + count) for all rows of the job, to out [rows][out_stride].
void run_panels(const Job& job, std::int64_t first, std::int64_t count, float* out,
                std::int64_t out_stride) {
  const PanelShape& shape = job.weight.shape;
  const std::int64_t tiles = row_tile_count(job.m, job.most_rows);
  const std::int64_t zero_bytes = shape.kind == PanelKind::int8 ? 2 : 1;
  for (std::int64_t panel = first; panel < first + count; panel += kTilePanels) {
    const std::int64_t at = panel * shape.groups * kPanelWidth;
    const std::int64_t panels = std::min(kTilePanels, first + count - panel);
    const std::uint8_t* codes = job.weight.codes + panel * shape.panel_bytes;
    const Scales scales{static_cast<const char*>(job.weight.scales.data) +
                            at * element_bytes(job.weight.scales.type),
                        job.weight.scales.type};
    const void* zeros =
        job.weight.zeros ? static_cast<const char*>(job.weight.zeros) + at * zero_bytes : nullptr;
    float* to = out + (panel - first) * kPanelWidth;
#if defined(__x86_64__)
    if (job.slab) {
      alignas(64) thread_local std::uint8_t slab[kSlabBytes];
      for (std::int64_t step = 0; step < shape.steps; step += kSlabSteps) {
        const SlabArgs stretch{&shape,
                               codes,
                               scales,
                               zeros,
                               job.weight.table,
                               panels,
                               step,
                               std::min(step + kSlabSteps, shape.steps),
                               slab};
        decode_slab_avx512bf16(stretch);
        for (std::int64_t t = 0; t < tiles; ++t) {
          const RowTile tile = row_tile(job.m, job.most_rows, t);
          multiply_slab_avx512bf16(stretch,
                                   job.rows.values + tile.first * row_bytes(shape, job.act),
                                   tile.rows, to + tile.first * out_stride, out_stride);
        }
      }
      continue;
    }
#endif
    for (std::int64_t t = 0; t < tiles; ++t) {
      const RowTile tile = row_tile(job.m, job.most_rows, t);
      TileArgs args{};
      args.shape = &shape;
      args.act = job.act;
      args.codes = codes;
      args.scales = scales;
      args.zeros = zeros;
      args.table = job.weight.table;
      args.table_high = job.table_high;
      args.table_low = job.table_low;
      args.panels = panels;
      args.rows = tile.rows;
      args.x = job.rows.values + tile.first * row_bytes(shape, job.act);
      args.x_scales = job.rows.scales + tile.first * shape.blocks;
      args.x_sums = job.rows.sums + 2 * tile.first * shape.blocks;
      args.x_float_sums = args.x_scales;
      args.out = to + tile.first * out_stride;
      args.out_stride = out_stride;
      job.functions.tile(args);
    }
  }
}

/// The columns of panels [first, first + count), clipped to n, of all rows to y.
void store_panels(const Job& job, const LinearArgs& args, std::int64_t first_row,
                  std::int64_t first, std::int64_t count, const float* out,
                  std::int64_t out_stride) {
  const std::int64_t column = first * kPanelWidth;
  const std::int64_t width = std::min(count * kPanelWidth, job.weight.shape.n - column);
  for (std::int64_t r = 0; r < job.m; ++r)
    job.functions.store(out + r * out_stride, args.bias ? args.bias + column : nullptr, width,
                        args.y_type,
                        static_cast<char*>(args.y) + ((first_row + r) * args.y_stride + column) *
                                                         element_bytes(args.y_type));
}

/// A job of few rows that the pool may compute again where a thread is late. False when the pool
/// has no such jobs or no memory.
bool run_staged(Job& job, const LinearArgs& args, const graft_pool& pool) {
  if (pool.size < offsetof(graft_pool, drain) + sizeof(pool.drain)) return false;
  const PanelShape& shape = job.weight.shape;
  const std::int64_t chunks = (shape.panels + job.panels_of_chunk - 1) / job.panels_of_chunk;
  const std::int64_t stride = job.panels_of_chunk * kPanelWidth;
  const std::int64_t head = round_up_64(sizeof(Job));
  const Sizes sizes = sizes_of(shape, job.act, args.m);
  void* staged =
      pool.open_staged(static_cast<std::uint64_t>(head + sizes.total + scratch_bytes(shape)),
                       chunks, static_cast<std::uint64_t>(args.m * stride * 4));
  if (!staged) return false;
  auto* shared = static_cast<std::byte*>(pool.shared_of(staged));
  place_rows(job, shared + head, args.m);
  auto* scratch = reinterpret_cast<float*>(shared + head + sizes.total);
  for (std::int64_t t = 0; t < row_tile_count(job.m, job.most_rows); ++t)
    prepare_tile(job, args, 0, t, scratch);
  const Job* copy = new (shared) Job(job);
  struct Context {
    const Job* job;
    const LinearArgs* args;
    std::int64_t stride;
  } context{copy, &args, stride};
  pool.run_staged(
      staged,
      [](const void* block, std::int64_t chunk, void* staging) noexcept {
        const Job& at = *static_cast<const Job*>(block);
        const std::int64_t first = chunk * at.panels_of_chunk;
        run_panels(at, first, std::min(at.panels_of_chunk, at.weight.shape.panels - first),
                   static_cast<float*>(staging), at.panels_of_chunk * kPanelWidth);
      },
      [](void* opaque, std::int64_t chunk, const void* staging) noexcept {
        const Context& at = *static_cast<const Context*>(opaque);
        const std::int64_t first = chunk * at.job->panels_of_chunk;
        store_panels(*at.job, *at.args, 0, first,
                     std::min(at.job->panels_of_chunk, at.job->weight.shape.panels - first),
                     static_cast<const float*>(staging), at.stride);
      },
      &context);
  return true;
}

/// Many rows: blocks of them one after another, chunks of panels of each in parallel.
void run_blocks(Job& job, const LinearArgs& args, const graft_pool& pool) {
  const PanelShape& shape = job.weight.shape;
  const std::int64_t blocks = row_tile_count(args.m, kRowsAtOnce);
  const std::int64_t most = std::min(args.m, kRowsAtOnce);
  const std::int64_t per_row = scratch_bytes(shape);
  const std::int64_t workers = std::max(pool.threads(), 1);
  const Sizes sizes = sizes_of(shape, job.act, most);
  thread_local Scratch memory;
  std::byte* base = memory.at_least(sizes.total + workers * per_row);
  for (std::int64_t block = 0; block < blocks; ++block) {
    const RowTile rows = row_tile(args.m, kRowsAtOnce, block);
    place_rows(job, base, rows.rows);
    const std::int64_t tiles = row_tile_count(job.m, job.most_rows);
    const std::int64_t parts = std::min(workers, tiles);
    for_each_chunk(pool, parts, [&](std::int64_t part) {
      auto* scratch = reinterpret_cast<float*>(base + sizes.total + part * per_row);
      for (std::int64_t t = part; t < tiles; t += parts)
        prepare_tile(job, args, rows.first, t, scratch);
    });
    const std::int64_t chunks = (shape.panels + kTilePanels - 1) / kTilePanels;
    for_each_chunk(pool, chunks, [&](std::int64_t chunk) {
      alignas(64) float out[kRowsAtOnce * kTilePanels * kPanelWidth];
      const std::int64_t first = chunk * kTilePanels;
      const std::int64_t count = std::min(kTilePanels, shape.panels - first);
      run_panels(job, first, count, out, kTilePanels * kPanelWidth);
      store_panels(job, args, rows.first, first, count, out, kTilePanels * kPanelWidth);
    });
  }
}

/// The job of a call with m rows lies at the start of the prepared memory, its rows behind it.
class PanelProduct final : public nn::RowProduct {
 public:
  PanelProduct(const PanelWeight& weight, const float* bias, Act act)
      : weight_(weight), bias_(bias), few_(job(act, 1)), many_(job(act, kSlabFrom)) {}

  std::int64_t in_features() const noexcept override { return weight_.shape.k; }
  std::int64_t out_features() const noexcept override { return weight_.shape.n; }
  std::int64_t most_rows() const noexcept override { return kRowsAtOnce; }
  std::int64_t unit() const noexcept override { return kTilePanels * kPanelWidth; }
  std::int64_t unit_bytes() const noexcept override {
    return kTilePanels * weight_.shape.panel_bytes;
  }

  std::int64_t prepared_bytes(std::int64_t m) const noexcept override {
    return kHead + sizes_of(weight_.shape, (m < kSlabFrom ? few_ : many_).act, m).total;
  }

  std::int64_t begin(std::int64_t m, std::byte* prepared) const noexcept override {
    Job* job = new (prepared) Job(m < kSlabFrom ? few_ : many_);
    place_rows(*job, prepared + kHead, m);
    return row_tile_count(m, job->most_rows);
  }

  void prepare(const float* x, std::int64_t stride, std::int64_t part,
               std::byte* prepared) const noexcept override {
    thread_local Scratch scratch;
    LinearArgs args{};
    args.x = x;
    args.x_stride = stride;
    prepare_tile(*reinterpret_cast<const Job*>(prepared), args, 0, part,
                 reinterpret_cast<float*>(scratch.at_least(scratch_bytes(weight_.shape))));
  }

  void compute(const std::byte* prepared, std::int64_t first, std::int64_t count, float* out,
               std::int64_t stride) const noexcept override {
    const Job& job = *reinterpret_cast<const Job*>(prepared);
    run_panels(job, first / kPanelWidth, (count + kPanelWidth - 1) / kPanelWidth, out, stride);
    if (!bias_) return;
    for (std::int64_t r = 0; r < job.m; ++r)
      for (std::int64_t i = 0; i < count; ++i) out[r * stride + i] += bias_[first + i];
  }

 private:
  Job job(Act act, std::int64_t m) const {
    LinearArgs args{};
    args.weight = &weight_;
    args.act = act;
    args.m = m;
    return make_job(cpu_level(), args, 1);
  }

  static constexpr std::int64_t kHead = (sizeof(Job) + 63) / 64 * 64;

  PanelWeight weight_;
  const float* bias_;
  Job few_, many_;
};

}  // namespace

void multiply_at(CpuLevel level, const LinearArgs& args, const graft_pool& pool) {
  if (args.m < 1) return;
  Job job = make_job(level, args, pool.threads());
  if (args.m <= kStagedRows && run_staged(job, args, pool)) return;
  run_blocks(job, args, pool);
}

void multiply(const LinearArgs& args, const graft_pool& pool) {
  multiply_at(cpu_level(), args, pool);
}

std::unique_ptr<nn::RowProduct> panel_product(const PanelWeight& weight, const float* bias,
                                              Act act) {
  return std::make_unique<PanelProduct>(weight, bias, act);
}

}  // namespace graft::kernels
