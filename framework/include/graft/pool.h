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
