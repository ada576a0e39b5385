#pragma once

#include <c10/core/InferenceMode.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <vector>

#include "graft/pool.h"

namespace graft {

/// Calls body(0) .. body(count - 1) on the pool, under InferenceMode. When some throw, what the
/// first of them in that order threw is thrown once all are done.
template <class Body>
void each_on_pool(std::int64_t count, const Body& body) {
  std::vector<std::exception_ptr> failed(static_cast<std::size_t>(count));
  for_each_chunk(pool(), count, [&](std::int64_t i) {
    const c10::InferenceMode guard;
    try {
      body(static_cast<std::size_t>(i));
    } catch (...) {
      failed[static_cast<std::size_t>(i)] = std::current_exception();
    }
  });
  for (const auto& error : failed)
    if (error) std::rethrow_exception(error);
}

}  // namespace graft
