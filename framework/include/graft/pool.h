#pragma once

#include "graft/plugin_abi.h"

#ifdef __cplusplus
#include <cstdint>

#include "graft/export.h"
extern "C" {
#endif

/* The process's one pool of threads, as the C table behind the host interface "graft.host.pool/1".
 * Nobody else makes threads: kernels take a pool and hand it their chunks. Plain C, no torch.
 * Append-only, as everything in plugin_abi.h; lives as long as the process. */
typedef struct graft_pool {
  uint32_t size; /* sizeof(graft_pool) of the side that filled it */
  /* [any-thread] How many threads run() uses at most, at least 1. Choose the number of chunks by
   * it, never results: those may not depend on the number of threads. */
  int32_t (*threads)(void) GRAFT_NOEXCEPT;
  /* [any-thread] Calls fn(context, i) once for each i in [0, chunks), in no particular order, on
   * any threads, the caller's among them, and returns when all are done. A call from inside fn
   * runs its chunks one after another. fn may not throw. */
  void (*run)(int64_t chunks, void (*fn)(void* context, int64_t chunk) GRAFT_NOEXCEPT,
              void* context) GRAFT_NOEXCEPT;

  /* Jobs that no descheduled thread holds up. A job's chunks read nothing but `shared`, a block of
   * the pool's own memory that the caller fills, and what stays valid until drain(); each writes
   * its result to a staging area of the pool. So the caller may compute a chunk again that another
   * thread has begun and not finished, and return; the late result is thrown away. */

  /* [any-thread] A job with `shared_bytes` of shared memory and `chunks` staging areas of
   * `staging_bytes`, all aligned to 64 bytes; NULL when there is no memory. Give it to run_staged
   * once, in the same thread. */
  void* (*open_staged)(uint64_t shared_bytes, int64_t chunks, uint64_t staging_bytes)GRAFT_NOEXCEPT;
  /* The shared memory of an open job. */
  void* (*shared_of)(void* job)GRAFT_NOEXCEPT;
  /* Calls compute(shared, i, staging) for each chunk on any threads, perhaps twice for some, and
   * deliver(context, i, staging) once for each, in the calling thread. Closes the job. */
  void (*run_staged)(void* job,
                     void (*compute)(const void* shared, int64_t chunk, void* staging)
                         GRAFT_NOEXCEPT,
                     void (*deliver)(void* context, int64_t chunk, const void* staging)
                         GRAFT_NOEXCEPT,
                     void* context) GRAFT_NOEXCEPT;
  /* [any-thread] Returns once no thread works on a job whose run_staged has returned. Call it
   * before memory that compute functions read, such as weights, goes away. */
  void (*drain)(void) GRAFT_NOEXCEPT;
} graft_pool;
#define GRAFT_POOL_INTERFACE "graft.host.pool/1"

#ifdef __cplusplus
} /* extern "C" */

namespace graft {

/// The pool, for those who link libgraft; kernels get it as an argument.
GRAFT_API const graft_pool& pool();

/// Calls body(chunk) for each chunk in [0, chunks) on `threads`; body may not throw.
template <class Body>
void for_each_chunk(const graft_pool& threads, std::int64_t chunks, const Body& body) {
  threads.run(
      chunks,
      [](void* context, std::int64_t chunk) noexcept {
        (*static_cast<const Body*>(context))(chunk);
      },
      const_cast<Body*>(&body));
}

}  // namespace graft
#endif
