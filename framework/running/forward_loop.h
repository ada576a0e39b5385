#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "graft/context.h"
#include "graft/model.h"
#include "running/recorder.h"

namespace graft {

/// One sequence through Model::forward, which runs any decoder on any device. With a recorder,
/// single tokens behind the first call go through a step of fixed shape and addresses, which is
/// recorded once and replayed for each token, and recorded again as the text outgrows its cache.
/// Runs under InferenceMode. Not thread-safe.
class GRAFT_API ForwardLoop {
 public:
  /// Entries of the first fixed cache; every other has twice as many as the one before.
  static constexpr std::int64_t kCapacity = 256;

  /// Why a step of `model` cannot be recorded; empty: nothing speaks against it.
  static std::string obstacle(const Model& model);

  /// With a recorder of CUDA graphs where the model lies on a CUDA device. The loop borrows the
  /// model, which may not change meanwhile.
  static std::unique_ptr<ForwardLoop> of(Model& model, const Context& context);

  /// `recorder`: nullptr for none. It is given up when there is an obstacle or it cannot record a
  /// step, and `context` is told why, once. `capacity`: above 0, in the place of kCapacity.
  ForwardLoop(Model& model, std::unique_ptr<Recorder> recorder, Context context,
              std::int64_t capacity = kCapacity);
  ForwardLoop(const ForwardLoop&) = delete;
  ForwardLoop& operator=(const ForwardLoop&) = delete;

  /// Logits [vocabulary] after the last of `ids`, which follow those of the calls before; good
  /// until the next call. Throws Error(usage) for ids outside of the vocabulary, and what forward
  /// throws.
  std::span<const float> next(std::span<const std::int64_t> ids);

 private:
  at::Tensor forward(const at::Tensor& ids);
  /// false: it cannot be recorded, and nothing was done.
  bool replay(std::int64_t id);
  bool record();

  Model& model_;
  KvCache cache_;
  std::unique_ptr<Recorder> recorder_;
  Context context_;
  std::int64_t capacity_;
  std::int64_t recorded_ = 0;  ///< capacity of the cache that is recorded; 0: none is
  at::Tensor id_;              ///< [1, 1] int64, on the model's device: what a replay reads
  at::Tensor row_;             ///< [1, 1, vocabulary] float32, there too: what it writes
  at::Tensor logits_;          ///< on the CPU
};

}  // namespace graft
