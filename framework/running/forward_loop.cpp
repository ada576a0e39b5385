#include "running/forward_loop.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "graft/nn/experts.h"
#include "models/rope.h"
#include "running/cuda_graph.h"
#include "running/input_ids.h"

namespace graft {
namespace {

/// Where the first tensor, an embedding, lies: small tensors of files may stay on the CPU.
c10::Device device_of(const Model& model) {
  const auto tensors = model.parameters();
  return tensors.empty() ? c10::Device(at::kCPU) : tensors.front().device();
}

void say_unrecorded(const Context& context, LogLevel level, const std::string& why) {
  context.say(level, "generate", "every token is launched piece by piece: " + why);
}

}  // namespace

std::string ForwardLoop::obstacle(const Model& model) {
  if (model.cache_layers() == 0) return "the model is no decoder";
  if (!rope_lengths_of(model.text_config()).fixed)
    return "positions change with the length of the text";
  for (const auto& module : model.modules()) {
    if (dynamic_cast<const nn::Experts*>(module.get()))
      return "which experts run is decided on the host";
    if (const auto* block = dynamic_cast<const nn::Block*>(module.get());
        block && block->execution_device())
      return "the model lies on several devices";
  }
  return {};
}

std::unique_ptr<ForwardLoop> ForwardLoop::of(Model& model, const Context& context) {
  std::unique_ptr<Recorder> recorder;
  if (const auto device = device_of(model); device.is_cuda()) {
    recorder = cuda_graph(device);
    if (!recorder)
      say_unrecorded(context, LogLevel::warning, "graft was built with a LibTorch without CUDA");
  }
  return std::make_unique<ForwardLoop>(model, std::move(recorder), context);
}

ForwardLoop::ForwardLoop(Model& model, std::unique_ptr<Recorder> recorder, Context context,
                         std::int64_t capacity)
    : model_(model),
      cache_(model.cache_layers()),
      recorder_(std::move(recorder)),
      context_(std::move(context)),
      capacity_(capacity) {
  if (!recorder_) return;
  if (const auto why = obstacle(model); !why.empty()) {
    say_unrecorded(context_, LogLevel::info, why);
    recorder_.reset();
  }
}

std::span<const float> ForwardLoop::next(std::span<const std::int64_t> ids) {
  const auto given = input_ids(model_, ids);
  if (recorder_ && ids.size() == 1 && cache_.length() > 0 && replay(ids[0])) {
    logits_ = row_.to(at::kCPU);
  } else {
    cache_.unfix();
    recorded_ = 0;
    logits_ = forward(given).to(at::kCPU, at::kFloat).contiguous();
  }
  const auto vocabulary = logits_.size(-1);
  return {logits_.const_data_ptr<float>() + logits_.numel() - vocabulary,
          static_cast<std::size_t>(vocabulary)};
}

at::Tensor ForwardLoop::forward(const at::Tensor& ids) {
  Batch batch;
  batch.input_ids = ids;
  batch.cache = &cache_;
  batch.last_logits_only = true;
  return model_.forward(batch);
}

bool ForwardLoop::replay(std::int64_t id) {
  if (!id_.defined())
    id_ = at::empty({1, 1}, at::TensorOptions(device_of(model_)).dtype(at::kLong));
  id_.fill_(id);
  if (cache_.length() >= recorded_ && !record()) return false;
  recorder_->replay();
  cache_.advance();
  return true;
}

bool ForwardLoop::record() {
  recorded_ = 0;
  const auto room = cache_.length() + 1;
  const auto power = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(room)));
  capacity_ = std::max(capacity_, power);
  // No step is recorded for positions that are not there.
  const auto most = std::max(model_.positions().value_or(capacity_), room);
  cache_.fix(std::min(capacity_, most));
  const auto why = recorder_->record([this] {
    const auto logits = forward(id_);
    if (!row_.defined()) row_ = at::empty(logits.sizes(), logits.options().dtype(at::kFloat));
    row_.copy_(logits);
  });
  if (why.empty()) {
    recorded_ = cache_.fixed()->capacity;
    return true;
  }
  say_unrecorded(context_, LogLevel::warning, why);
  recorder_.reset();
  return false;
}

}  // namespace graft
