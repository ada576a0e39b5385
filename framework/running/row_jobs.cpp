#include "running/row_jobs.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <new>

#include "graft/error.h"

namespace graft {
namespace {

constexpr std::size_t kMostJobs = 4;
/// Weights of a chunk of a staged job: long enough to stream, short enough to lose.
constexpr std::int64_t kChunkBytes = 128 << 10;

/// One product of a call: chunks [first_chunk, first_chunk of the next), `outputs` each.
struct Piece {
  const nn::RowProduct* product;
  std::byte* prepared;
  std::int64_t first_chunk, outputs;
};

/// All that a chunk needs: plain data at the start of a job's shared memory.
struct Call {
  std::array<Piece, kMostJobs> pieces;
  std::size_t count = 0;
  std::int64_t m = 0, chunks = 0;
  std::int64_t most_outputs = 0;  ///< of a chunk
  const kernels::RowOperations* operations = nullptr;

  const Piece& piece_of(std::int64_t chunk) const {
    std::size_t i = count - 1;
    while (pieces[i].first_chunk > chunk) --i;
    return pieces[i];
  }

  /// The outputs of a chunk, to out [m][stride].
  void compute(const Piece& piece, std::int64_t chunk, float* out, std::int64_t stride) const {
    const std::int64_t first = (chunk - piece.first_chunk) * piece.outputs;
    const std::int64_t outputs = std::min(piece.outputs, piece.product->out_features() - first);
    piece.product->compute(piece.prepared, first, outputs, out, stride);
    for (std::int64_t r = 0; r < m; ++r) operations->round(out + r * stride, outputs);
  }

  void deliver(const Piece& piece, std::int64_t chunk, const float* from, std::int64_t stride,
               const RowJob& job) const {
    const std::int64_t first = (chunk - piece.first_chunk) * piece.outputs;
    const std::int64_t outputs = std::min(piece.outputs, piece.product->out_features() - first);
    for (std::int64_t r = 0; r < m; ++r)
      std::memcpy(job.out + r * job.stride + first, from + r * stride,
                  static_cast<std::size_t>(outputs) * 4);
  }
};

std::int64_t units(const nn::RowProduct& product) {
  return (product.out_features() + product.unit() - 1) / product.unit();
}

/// Cuts the products into chunks. With few rows at least eight for a thread, so that none waits
/// long for another.
Call cut(std::span<const RowJob> jobs, std::int64_t m, const kernels::RowOperations& operations,
         std::int64_t threads) {
  Call call;
  call.count = jobs.size();
  call.m = m;
  call.operations = &operations;
  std::int64_t all = 0;
  for (const auto& job : jobs) all += units(*job.product);
  const std::int64_t share = threads > 1 ? all / (8 * threads) : all;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const auto& product = *jobs[i].product;
    Piece& piece = call.pieces[i];
    piece.product = &product;
    piece.first_chunk = call.chunks;
    const std::int64_t of_chunk =
        m < kManyRows ? std::max<std::int64_t>(
                            std::min(kChunkBytes / std::max<std::int64_t>(product.unit_bytes(), 1),
                                     share),
                            1)
                      : 1;
    piece.outputs = of_chunk * product.unit();
    call.most_outputs = std::max(call.most_outputs, piece.outputs);
    call.chunks += (units(product) + of_chunk - 1) / of_chunk;
  }
  return call;
}

std::int64_t prepared_bytes(const Call& call) {
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < call.count; ++i)
    bytes += kernels::round_up_64(call.pieces[i].product->prepared_bytes(call.m));
  return bytes;
}

/// Places the pieces' prepared rows at `memory`; returns the number of parts to prepare.
std::int64_t place(Call& call, std::byte* memory, std::array<std::int64_t, kMostJobs>& parts) {
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < call.count; ++i) {
    Piece& piece = call.pieces[i];
    piece.prepared = memory;
    memory += kernels::round_up_64(piece.product->prepared_bytes(call.m));
    parts[i] = piece.product->begin(call.m, piece.prepared);
    sum += parts[i];
  }
  return sum;
}

void prepare(const Call& call, const std::array<std::int64_t, kMostJobs>& parts, const float* x,
             std::int64_t stride, std::int64_t part) {
  std::size_t i = 0;
  while (part >= parts[i]) part -= parts[i++];
  call.pieces[i].product->prepare(x, stride, part, call.pieces[i].prepared);
}

bool run_staged(Call& call, std::span<const RowJob> jobs, const float* x, std::int64_t stride,
                const graft_pool& pool) {
  constexpr std::int64_t head = (sizeof(Call) + 63) / 64 * 64;
  void* staged =
      pool.open_staged(static_cast<std::uint64_t>(head + prepared_bytes(call)), call.chunks,
                       static_cast<std::uint64_t>(call.m * call.most_outputs * 4));
  if (!staged) return false;
  auto* shared = static_cast<std::byte*>(pool.shared_of(staged));
  std::array<std::int64_t, kMostJobs> parts;
  const std::int64_t count = place(call, shared + head, parts);
  for (std::int64_t part = 0; part < count; ++part) prepare(call, parts, x, stride, part);
  struct Context {
    const Call* call;
    std::span<const RowJob> jobs;
  } context{new (shared) Call(call), jobs};
  pool.run_staged(
      staged,
      [](const void* block, std::int64_t chunk, void* staging) noexcept {
        const Call& at = *static_cast<const Call*>(block);
        at.compute(at.piece_of(chunk), chunk, static_cast<float*>(staging), at.most_outputs);
      },
      [](void* opaque, std::int64_t chunk, const void* staging) noexcept {
        const Context& at = *static_cast<const Context*>(opaque);
        const Piece& piece = at.call->piece_of(chunk);
        at.call->deliver(piece, chunk, static_cast<const float*>(staging), at.call->most_outputs,
                         at.jobs[static_cast<std::size_t>(&piece - at.call->pieces.data())]);
      },
      &context);
  return true;
}

void run_plain(Call& call, std::span<const RowJob> jobs, const float* x, std::int64_t stride,
               kernels::Scratch& memory, const graft_pool& pool) {
  std::array<std::int64_t, kMostJobs> parts;
  const std::int64_t count = place(call, memory.at_least(prepared_bytes(call)), parts);
  for_each_chunk(pool, count,
                 [&](std::int64_t part) { prepare(call, parts, x, stride, part); });
  for_each_chunk(pool, call.chunks, [&](std::int64_t chunk) {
    thread_local kernels::Scratch outputs;
    auto* out = reinterpret_cast<float*>(outputs.at_least(call.m * call.most_outputs * 4));
    const Piece& piece = call.piece_of(chunk);
    call.compute(piece, chunk, out, call.most_outputs);
    call.deliver(piece, chunk, out, call.most_outputs,
                 jobs[static_cast<std::size_t>(&piece - call.pieces.data())]);
  });
}

}  // namespace

void multiply(std::span<const RowJob> jobs, const float* x, std::int64_t stride, std::int64_t m,
              const kernels::RowOperations& operations, kernels::Scratch& memory,
              const graft_pool& pool) {
  if (jobs.empty() || m < 1) return;
  if (jobs.size() > kMostJobs) throw Error(ErrorKind::internal, "too many products in one job");
  Call call = cut(jobs, m, operations, std::max(pool.threads(), 1));
  if (m < kManyRows && run_staged(call, jobs, x, stride, pool)) return;
  run_plain(call, jobs, x, stride, memory, pool);
}

}  // namespace graft
