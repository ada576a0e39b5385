#include "kernels/row_int8.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/element.h"
#include "kernels/linear.h"
#include "kernels/scratch.h"

namespace graft::kernels {
namespace {

constexpr std::int64_t kRowsAtOnce = 120;
constexpr std::int64_t kTileRows = 12, kTilePanels = 2;
constexpr float kOneOver127 = 7.874015718698502e-3F;  // 1/127 as a float
constexpr float kOneOver16129 = static_cast<float>(1.0 / 16129.0);

struct Functions {
  ScanRowFn scan;
  QuantizeRowFn quantize;
  RowInt8TileFn tile;
  void (*store)(const float*, const float*, std::int64_t, ElementType, void*);
};

Functions functions_of(CpuLevel level) {
#if defined(__x86_64__)
  if (level == CpuLevel::avx512)
    return {&scan_row_avx2, &quantize_row_avx2, &row_int8_tile_avx512, &store_row_avx2};
  if (level == CpuLevel::avx2)
    return {&scan_row_avx2, &quantize_row_avx2, &row_int8_tile_avx2, &store_row_avx2};
#else
  (void)level;
#endif
  return {&scan_row_scalar, &quantize_row_scalar, &row_int8_tile_scalar, &store_row_scalar};
}

/// All that a chunk of a job needs: plain data in memory of the job.
struct Job {
  PanelShape shape;
  const std::uint8_t* codes;
  const float* scales;
  Functions functions;
  ElementType x_type;
  std::int64_t m, panels_of_chunk, outliers;
  const std::uint8_t* values;           ///< prepared tiles, [step][row][8]
  const float* x_scales;                ///< [m]
  const std::int32_t* sums;             ///< [m]
  const std::int32_t* outlier_columns;  ///< [outliers]
  const float* outlier_values;          ///< [m][outliers]
};

std::int64_t element_bytes(ElementType type) { return type == ElementType::f32 ? 4 : 2; }

/// A number rounded to `type`.
float round_to(float value, ElementType type) {
  if (type == ElementType::f32) return value;
  std::uint16_t half;
  store_row_scalar(&value, nullptr, 1, type, &half);
  return element_at(&half, type, 0);
}

/// A weight as bitsandbytes dequantizes it for the product with outliers: in the dtype of x.
float plain_weight(const Job& job, std::int64_t panel, std::int64_t column, std::int64_t j) {
  const std::uint8_t* line =
      job.codes + panel * job.shape.panel_bytes + column / kStep * job.shape.step_bytes;
  const std::int64_t i = column % kStep;
  const int code = line[i / 4 * 64 + 4 * j + i % 4] - 128;
  const std::int64_t n = panel * kPanelWidth + j;
  const float scale = n < job.shape.n ? job.scales[n] : 0;
  return round_to(static_cast<float>(code) * scale * kOneOver127, job.x_type);
}

/// Panels [first, first + count) for all rows, to out [m][out_stride].
void run_panels(const Job& job, std::int64_t first, std::int64_t count, float* out,
                std::int64_t out_stride) {
  const std::int64_t tiles = row_tile_count(job.m, kTileRows);
  for (std::int64_t panel = first; panel < first + count; panel += kTilePanels) {
    const std::int64_t panels = std::min(kTilePanels, first + count - panel);
    const std::int64_t width = panels * kPanelWidth;
    for (std::int64_t t = 0; t < tiles; ++t) {
      const RowTile tile = row_tile(job.m, kTileRows, t);
      alignas(64) std::int32_t sums[kTileRows * kTilePanels * kPanelWidth];
      job.functions.tile(job.shape, job.codes + panel * job.shape.panel_bytes, panels,
                         job.values + tile.first * job.shape.steps * kStep, job.sums + tile.first,
                         tile.rows, sums);
      for (std::int64_t r = 0; r < tile.rows; ++r) {
        float* row = out + (tile.first + r) * out_stride + (panel - first) * kPanelWidth;
        for (std::int64_t j = 0; j < width; ++j) {
          const std::int64_t n = panel * kPanelWidth + j;
          const float scale = n < job.shape.n ? job.scales[n] : 0;
          row[j] = static_cast<float>(sums[r * width + j]) *
                   (job.x_scales[tile.first + r] * scale) * kOneOver16129;
        }
      }
    }
    for (std::int64_t o = 0; o < job.outliers; ++o)
      for (std::int64_t j = 0; j < width; ++j) {
        const float weight =
            plain_weight(job, panel + j / kPanelWidth, job.outlier_columns[o], j % kPanelWidth);
        for (std::int64_t r = 0; r < job.m; ++r)
          out[r * out_stride + (panel - first) * kPanelWidth + j] +=
              job.outlier_values[r * job.outliers + o] * weight;
      }
  }
}

void store_panels(const Job& job, const RowInt8Args& args, std::int64_t first_row,
                  std::int64_t first, std::int64_t count, const float* out,
                  std::int64_t out_stride) {
  const std::int64_t column = first * kPanelWidth;
  const std::int64_t width = std::min(count * kPanelWidth, job.shape.n - column);
  for (std::int64_t r = 0; r < job.m; ++r)
    job.functions.store(out + r * out_stride, args.bias ? args.bias + column : nullptr, width,
                        args.y_type,
                        static_cast<char*>(args.y) + ((first_row + r) * args.y_stride + column) *
                                                         element_bytes(args.y_type));
}

/// Rows [first, first + job.m) into memory of the calling thread: half-rounded values, and the
/// columns that leave int8, over all rows of the call.
struct Scanned {
  float* values;          ///< [m][steps * 8]
  float* absmax;          ///< [m]
  std::uint8_t* columns;  ///< [steps * 8]
};

std::int64_t prepared_bytes(const PanelShape& shape, std::int64_t m, std::int64_t outliers) {
  return round_up_64(m * shape.steps * kStep) + 2 * round_up_64(4 * m) + round_up_64(4 * outliers) +
         round_up_64(4 * m * outliers);
}

/// Fills the job's memory from rows [first, first + m) of what was scanned.
void prepare(Job& job, std::byte* memory, const RowInt8Args& args, const Scanned& scanned,
             std::int64_t first, std::int64_t m, const std::int32_t* outlier_columns,
             std::int64_t outliers) {
  const std::int64_t steps = job.shape.steps;
  job.m = m;
  job.outliers = outliers;
  auto* values = reinterpret_cast<std::uint8_t*>(memory);
  auto* scales = reinterpret_cast<float*>(memory + round_up_64(m * steps * kStep));
  auto* sums =
      reinterpret_cast<std::int32_t*>(reinterpret_cast<std::byte*>(scales) + round_up_64(4 * m));
  auto* columns =
      reinterpret_cast<std::int32_t*>(reinterpret_cast<std::byte*>(sums) + round_up_64(4 * m));
  auto* large =
      reinterpret_cast<float*>(reinterpret_cast<std::byte*>(columns) + round_up_64(4 * outliers));
  std::copy_n(outlier_columns, outliers, columns);
  for (std::int64_t t = 0; t < row_tile_count(m, kTileRows); ++t) {
    const RowTile tile = row_tile(m, kTileRows, t);
    for (std::int64_t r = 0; r < tile.rows; ++r) {
      const std::int64_t row = tile.first + r;
      const float* from = scanned.values + (first + row) * steps * kStep;
      const void* given = static_cast<const char*>(args.x) +
                          (first + row) * args.x_stride * element_bytes(args.x_type);
      const float absmax = scanned.absmax[first + row];
      const bool usable = absmax > 0 && std::isfinite(absmax);
      sums[row] = job.functions.quantize(
          from, scanned.columns, steps, usable ? 1.0F / absmax * 127.0F : 0.0F,
          values + (tile.first * steps + r) * kStep, tile.rows * kStep);
      scales[row] = std::isfinite(absmax) ? absmax : std::nanf("");
      for (std::int64_t o = 0; o < outliers; ++o)
        large[row * outliers + o] = element_at(given, args.x_type, outlier_columns[o]);
    }
  }
  job.values = values;
  job.x_scales = scales;
  job.sums = sums;
  job.outlier_columns = columns;
  job.outlier_values = large;
}

bool run_staged(Job& job, const RowInt8Args& args, const Scanned& scanned,
                const std::int32_t* outlier_columns, std::int64_t outliers,
                const graft_pool& pool) {
  if (pool.size < offsetof(graft_pool, drain) + sizeof(pool.drain)) return false;
  const PanelShape& shape = job.shape;
  const std::int64_t chunks = (shape.panels + job.panels_of_chunk - 1) / job.panels_of_chunk;
  const std::int64_t stride = job.panels_of_chunk * kPanelWidth;
  const std::int64_t head = round_up_64(sizeof(Job));
  void* staged =
      pool.open_staged(static_cast<std::uint64_t>(head + prepared_bytes(shape, args.m, outliers)),
                       chunks, static_cast<std::uint64_t>(args.m * stride * 4));
  if (!staged) return false;
  auto* shared = static_cast<std::byte*>(pool.shared_of(staged));
  prepare(job, shared + head, args, scanned, 0, args.m, outlier_columns, outliers);
  struct Context {
    const Job* job;
    const RowInt8Args* args;
  } context{new (shared) Job(job), &args};
  pool.run_staged(
      staged,
      [](const void* block, std::int64_t chunk, void* staging) noexcept {
        const Job& at = *static_cast<const Job*>(block);
        const std::int64_t first = chunk * at.panels_of_chunk;
        run_panels(at, first, std::min(at.panels_of_chunk, at.shape.panels - first),
                   static_cast<float*>(staging), at.panels_of_chunk * kPanelWidth);
      },
      [](void* opaque, std::int64_t chunk, const void* staging) noexcept {
        const Context& at = *static_cast<const Context*>(opaque);
        const std::int64_t first = chunk * at.job->panels_of_chunk;
        store_panels(*at.job, *at.args, 0, first,
                     std::min(at.job->panels_of_chunk, at.job->shape.panels - first),
                     static_cast<const float*>(staging), at.job->panels_of_chunk * kPanelWidth);
      },
      &context);
  return true;
}

}  // namespace

void multiply_rows_int8_at(CpuLevel level, const RowInt8Args& args, const graft_pool& pool) {
  if (args.m < 1) return;
  Job job{};
  job.shape = *args.shape;
  job.codes = args.codes;
  job.scales = args.scales;
  job.x_type = args.x_type;
  job.functions = functions_of(level);
  const std::int64_t threads = pool.threads(), panels = job.shape.panels;
  const std::int64_t share = threads > 1 ? panels / (8 * threads) : panels;
  job.panels_of_chunk =
      kTilePanels *
      std::max<std::int64_t>(1, std::min((64 << 10) / job.shape.panel_bytes, share) / kTilePanels);

  const std::int64_t width = job.shape.steps * kStep;
  thread_local Scratch scan_memory, columns_memory, job_memory;
  Scanned scanned{};
  std::byte* base =
      scan_memory.at_least(args.m * width * 4 + round_up_64(4 * args.m) + round_up_64(width));
  scanned.values = reinterpret_cast<float*>(base);
  scanned.absmax = reinterpret_cast<float*>(base + args.m * width * 4);
  scanned.columns =
      reinterpret_cast<std::uint8_t*>(base + args.m * width * 4 + round_up_64(4 * args.m));
  std::memset(scanned.columns, 0, static_cast<std::size_t>(width));
  for (std::int64_t r = 0; r < args.m; ++r) {
    float* values = scanned.values + r * width;
    std::fill(values + job.shape.k, values + width, 0.0F);
    scanned.absmax[r] = job.functions.scan(
        static_cast<const char*>(args.x) + r * args.x_stride * element_bytes(args.x_type),
        args.x_type, job.shape.k, args.threshold, values, scanned.columns);
  }
  auto* outlier_columns =
      reinterpret_cast<std::int32_t*>(columns_memory.at_least(round_up_64(4 * job.shape.k)));
  std::int64_t outliers = 0;
  for (std::int64_t i = 0; i < job.shape.k; ++i)
    if (scanned.columns[i]) outlier_columns[outliers++] = static_cast<std::int32_t>(i);

  if (args.m <= 16 && run_staged(job, args, scanned, outlier_columns, outliers, pool)) return;
  const std::int64_t blocks = row_tile_count(args.m, kRowsAtOnce);
  std::byte* memory =
      job_memory.at_least(prepared_bytes(job.shape, std::min(args.m, kRowsAtOnce), outliers));
  for (std::int64_t block = 0; block < blocks; ++block) {
    const RowTile rows = row_tile(args.m, kRowsAtOnce, block);
    prepare(job, memory, args, scanned, rows.first, rows.rows, outlier_columns, outliers);
    const std::int64_t chunks = (panels + kTilePanels - 1) / kTilePanels;
    for_each_chunk(pool, chunks, [&](std::int64_t chunk) {
      alignas(64) float out[kRowsAtOnce * kTilePanels * kPanelWidth];
      const std::int64_t first = chunk * kTilePanels;
      const std::int64_t count = std::min(kTilePanels, panels - first);
      run_panels(job, first, count, out, kTilePanels * kPanelWidth);
      store_panels(job, args, rows.first, first, count, out, kTilePanels * kPanelWidth);
    });
  }
}

void multiply_rows_int8(const RowInt8Args& args, const graft_pool& pool) {
  multiply_rows_int8_at(cpu_level(), args, pool);
}

}  // namespace graft::kernels
