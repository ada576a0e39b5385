#include "running/decoding_loop.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#include "graft/nn/layers.h"
#include "graft/nn/row_linear.h"
#include "kernels/linear.h"
#include "kernels/panel_tensors.h"

namespace graft {
namespace {

/// Tokens of a prompt that pass all layers together: their rows stay in the second-level cache, and
/// kernels cut them into whole tiles.
constexpr std::int64_t kBlockRows = 120;
/// Positions whose cos and sin are read at once while decoding.
constexpr std::int64_t kPositions = 64;
/// The widest head: its results are on the stack.
constexpr std::int64_t kWidestHead = 512;
/// Multiply-adds from which attention of one row is worth a job of the pool.
constexpr std::int64_t kSharedAttention = 1 << 19;
/// Of the caches: a row of them is read in whole lines.
constexpr std::size_t kAlignment = 64;
/// Queries of a chunk of attention.
constexpr std::int64_t kQueriesOfChunk = 32;

bool is_plain(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.defined() && tensor.device().is_cpu() && tensor.scalar_type() == dtype &&
         tensor.is_contiguous();
}

}  // namespace

DecodingLoop::DecodingLoop(const DecoderGraph& graph)
    : pool_(pool()),
      rope_(graph.rope),
      hidden_(graph.hidden_size),
      heads_(graph.heads),
      kv_heads_(graph.kv_heads),
      head_dim_(graph.head_dim),
      eps_(static_cast<float>(graph.rms_norm_eps)),
      scale_(static_cast<float>(1.0 / std::sqrt(static_cast<double>(graph.head_dim)))) {}

DecodingLoop::~DecodingLoop() { pool_.drain(); }

std::unique_ptr<DecodingLoop> DecodingLoop::of(Model& model, std::int64_t room) {
  auto* graphed = dynamic_cast<GraphedDecoder*>(&model);
  if (!graphed) return nullptr;
  const auto graph = graphed->decoder_graph();
  if (!graph) return nullptr;
  std::unique_ptr<DecodingLoop> loop(new DecodingLoop(*graph));
  if (!loop->prepare(*graph)) return nullptr;
  loop->reserve(room);
  return loop;
}

bool DecodingLoop::prepare(const DecoderGraph& graph) {
  static const Activation kSilu = activation_named("silu"), kSwish = activation_named("swish");
  auto* embedding = dynamic_cast<nn::Embedding*>(graph.embedding);
  if (!embedding || graph.layers.empty() || head_dim_ > kWidestHead || head_dim_ % 2 != 0 ||
      (graph.activation != kSilu && graph.activation != kSwish))
    return false;
  embedding_ = embedding->weight;
  dtype_ = embedding_.scalar_type();
  if (dtype_ != at::kFloat && dtype_ != at::kBFloat16 && dtype_ != at::kHalf) return false;
  if (!is_plain(embedding_, dtype_)) return false;
  type_ = kernels::element_type(dtype_);
  operations_ = &kernels::row_operations(kernels::cpu_level(), type_);
  ModuleSpec gate;
  graph.layers.front().gate->describe(gate);
  intermediate_ = gate.out_features;
  if (!prepare_norm(norm_, graph.norm, hidden_) ||
      !prepare_linear(head_, graph.head, hidden_, embedding_.size(0)))
    return false;
  layers_.resize(graph.layers.size());
  const std::int64_t q_width = heads_ * head_dim_, kv_width = kv_heads_ * head_dim_;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const auto& from = graph.layers[i];
    Layer& to = layers_[i];
    to.window = from.window;
    if (!prepare_norm(to.input_norm, from.input_norm, hidden_) ||
        !prepare_norm(to.post_norm, from.post_norm, hidden_) ||
        (from.q_norm && !prepare_norm(to.q_norm, from.q_norm, head_dim_)) ||
        (from.k_norm && !prepare_norm(to.k_norm, from.k_norm, head_dim_)) ||
        !prepare_linear(to.q, from.q, hidden_, q_width) ||
        !prepare_linear(to.k, from.k, hidden_, kv_width) ||
        !prepare_linear(to.v, from.v, hidden_, kv_width) ||
        !prepare_linear(to.o, from.o, q_width, hidden_) ||
        !prepare_linear(to.gate, from.gate, hidden_, intermediate_) ||
        !prepare_linear(to.up, from.up, hidden_, intermediate_) ||
        !prepare_linear(to.down, from.down, intermediate_, hidden_))
      return false;
  }
  logits_.resize(static_cast<std::size_t>(head_.out));
  return true;
}

bool DecodingLoop::prepare_norm(std::vector<float>& to, nn::Unary* from, std::int64_t width) {
  const auto* norm = dynamic_cast<nn::RmsNorm*>(from);
  if (!norm || !is_plain(norm->weight, dtype_) || norm->weight.numel() != width) return false;
  to.resize(static_cast<std::size_t>(width));
  operations_->widen(norm->weight.const_data_ptr(), width, to.data());
  return true;
}

bool DecodingLoop::prepare_linear(Linear& to, nn::Unary* from, std::int64_t in, std::int64_t out) {
  if (from->execution_device()) return false;
  to.module = from;
  ModuleSpec spec;
  from->describe(spec);
  to.in = in;
  to.out = out;
  if (spec.in_features != in || spec.out_features != out) return false;
  if (const auto* dense = dynamic_cast<const nn::Linear*>(from)) {
    if (!is_plain(dense->weight, dtype_)) return false;
    if (!dense->bias.defined())
      to.product =
          kernels::dense_product(dense->weight.const_data_ptr(), type_, to.out, to.in, nullptr);
  } else if (const auto* rows = dynamic_cast<const nn::RowLinear*>(from)) {
    to.product = rows->row_product(dtype_);
  }
  return true;
}

void DecodingLoop::reserve(std::int64_t tokens) {
  if (tokens <= capacity_) return;
  const std::int64_t before = capacity_;
  const std::int64_t block = kernels::kKeyBlock;
  capacity_ = (std::max<std::int64_t>({tokens, 2 * before, 64}) + block - 1) / block * block;
  const std::int64_t old_keys = kernels::key_bytes(type_, head_dim_, before);
  const std::int64_t old_values = kernels::value_bytes(type_, head_dim_, before);
  const std::int64_t keys = kernels::key_bytes(type_, head_dim_, capacity_);
  const std::int64_t values = kernels::value_bytes(type_, head_dim_, capacity_);
  const std::int64_t of_layer = kernels::round_up_64(kv_heads_ * (keys + values));
  auto space = static_cast<std::size_t>(of_layer) * layers_.size() + kAlignment;
  // Zeros where no key is yet: scores of those are thrown away, but computed.
  std::unique_ptr<void, Free> grown(std::calloc(space, 1));
  if (!grown) throw std::bad_alloc();
  void* aligned = grown.get();
  auto* to = static_cast<std::byte*>(std::align(kAlignment, 1, aligned, space));
  for (auto& layer : layers_) {
    for (std::int64_t h = 0; h < kv_heads_ && before > 0; ++h) {
      std::memcpy(to + h * keys, layer.cache + h * old_keys, static_cast<std::size_t>(old_keys));
      std::memcpy(to + kv_heads_ * keys + h * values,
                  layer.cache + kv_heads_ * old_keys + h * old_values,
                  static_cast<std::size_t>(old_values));
    }
    layer.cache = to;
    to += of_layer;
  }
  caches_ = std::move(grown);
}

kernels::HeadCache DecodingLoop::head_cache(Layer& layer, std::int64_t kv_head) const {
  const std::int64_t keys = kernels::key_bytes(type_, head_dim_, capacity_);
  const std::int64_t values = kernels::value_bytes(type_, head_dim_, capacity_);
  return {type_, head_dim_, layer.cache + kv_head * keys,
          layer.cache + kv_heads_ * keys + kv_head * values};
}

void DecodingLoop::read_positions(std::int64_t start, std::int64_t count) {
  if (rope_->fixed()) {
    if (start >= table_start_ && start + count <= table_start_ + table_count_) return;
    count = std::max(count, kPositions);
  }
  const auto [cos, sin] = rope_->tables(start, count, dtype_, at::kCPU);
  rotary_ = cos.size(1);
  table_start_ = start;
  table_count_ = count;
  cos_.resize(static_cast<std::size_t>(count * rotary_));
  sin_.resize(cos_.size());
  operations_->widen(cos.contiguous().const_data_ptr(), count * rotary_, cos_.data());
  operations_->widen(sin.contiguous().const_data_ptr(), count * rotary_, sin_.data());
}

std::span<const float> DecodingLoop::next(std::span<const std::int64_t> ids) {
  const auto count = static_cast<std::int64_t>(ids.size());
  reserve(length_ + count);
  read_positions(length_, count);
  const std::int64_t blocks = kernels::row_tile_count(count, kBlockRows);
  const auto most = static_cast<std::size_t>(std::min(count, kBlockRows));
  const auto widen = [&](std::vector<float>& rows, std::int64_t width) {
    if (const auto size = most * static_cast<std::size_t>(width); rows.size() < size)
      rows.resize(size);
    return rows.data();
  };
  const std::int64_t heads = heads_ * head_dim_, kv_heads = kv_heads_ * head_dim_;
  widen(rows_.x, hidden_);
  widen(rows_.normed, hidden_);
  rows_.q = rows_.gate = widen(rows_.inner, std::max(2 * (heads + kv_heads), 2 * intermediate_));
  const auto rows_at_once = static_cast<std::int64_t>(most);
  rows_.mixed = rows_.q + rows_at_once * heads;
  rows_.k = rows_.mixed + rows_at_once * heads;
  rows_.v = rows_.k + rows_at_once * kv_heads;
  rows_.up = rows_.gate + rows_at_once * intermediate_;
  std::int64_t last = 0;
  for (std::int64_t block = 0; block < blocks; ++block) {
    const auto rows = kernels::row_tile(count, kBlockRows, block);
    run_block(
        ids.subspan(static_cast<std::size_t>(rows.first), static_cast<std::size_t>(rows.rows)),
        length_ + rows.first);
    last = rows.rows - 1;
  }
  length_ += count;
  operations_->rms_norm(rows_.x.data() + last * hidden_, norm_.data(), hidden_, eps_,
                        rows_.normed.data());
  multiply({{&head_, logits_.data()}}, rows_.normed.data(), hidden_, 1);
  return logits_;
}

template <class Body>
void DecodingLoop::for_rows(std::int64_t m, const Body& body) const {
  constexpr std::int64_t rows = 8;
  if (m < kManyRows)
    for (std::int64_t r = 0; r < m; ++r) body(r);
  else
    for_each_chunk(pool_, (m + rows - 1) / rows, [&](std::int64_t chunk) {
      for (std::int64_t r = chunk * rows; r < std::min(m, (chunk + 1) * rows); ++r) body(r);
    });
}

void DecodingLoop::run_block(std::span<const std::int64_t> ids, std::int64_t start) {
  const auto m = static_cast<std::int64_t>(ids.size());
  const auto& ops = *operations_;
  const auto* table = static_cast<const std::byte*>(embedding_.const_data_ptr());
  const std::int64_t row_bytes = hidden_ * static_cast<std::int64_t>(embedding_.element_size());
  float *x = rows_.x.data(), *normed = rows_.normed.data();
  float *gate = rows_.gate, *up = rows_.up;
  for (std::int64_t r = 0; r < m; ++r)
    ops.widen(table + ids[static_cast<std::size_t>(r)] * row_bytes, hidden_, x + r * hidden_);
  for (auto& layer : layers_) {
    for_rows(m, [&](std::int64_t r) {
      ops.rms_norm(x + r * hidden_, layer.input_norm.data(), hidden_, eps_, normed + r * hidden_);
    });
    multiply({{&layer.q, rows_.q}, {&layer.k, rows_.k}, {&layer.v, rows_.v}}, normed, hidden_, m);
    attention(layer, m, start);
    multiply({{&layer.o, normed}}, rows_.mixed, heads_ * head_dim_, m);
    for_rows(m, [&](std::int64_t r) {
      ops.add(x + r * hidden_, normed + r * hidden_, hidden_);
      ops.rms_norm(x + r * hidden_, layer.post_norm.data(), hidden_, eps_, normed + r * hidden_);
    });
    multiply({{&layer.gate, gate}, {&layer.up, up}}, normed, hidden_, m);
    for_rows(m, [&](std::int64_t r) {
      ops.silu_times(gate + r * intermediate_, up + r * intermediate_, intermediate_);
    });
    multiply({{&layer.down, normed}}, gate, intermediate_, m);
    for_rows(m, [&](std::int64_t r) { ops.add(x + r * hidden_, normed + r * hidden_, hidden_); });
  }
}

void DecodingLoop::attention(Layer& layer, std::int64_t m, std::int64_t start) {
  const auto& ops = *operations_;
  const std::int64_t group = heads_ / kv_heads_;
  const auto rotate = [&](float* heads, std::int64_t count, const std::vector<float>& norm,
                          std::int64_t table) {
    for (std::int64_t h = 0; h < count; ++h, heads += head_dim_) {
      if (!norm.empty()) ops.rms_norm(heads, norm.data(), head_dim_, eps_, heads);
      ops.rotate(heads, cos_.data() + table, sin_.data() + table, rotary_);
    }
  };
  for_rows(m, [&](std::int64_t r) {
    const std::int64_t table = (start + r - table_start_) * rotary_;
    float* k = rows_.k + r * kv_heads_ * head_dim_;
    const float* v = rows_.v + r * kv_heads_ * head_dim_;
    rotate(rows_.q + r * heads_ * head_dim_, heads_, layer.q_norm, table);
    rotate(k, kv_heads_, layer.k_norm, table);
    for (std::int64_t h = 0; h < kv_heads_; ++h)
      kernels::remember(head_cache(layer, h), start + r, k + h * head_dim_, v + h * head_dim_);
  });
  const std::int64_t queries = m * group;
  const std::int64_t seen = layer.window > 0 ? std::min(layer.window, start + m) : start + m;
  if (m * heads_ * seen * head_dim_ < kSharedAttention) {
    for (std::int64_t h = 0; h < kv_heads_; ++h) attend(layer, start, h, 0, queries);
    return;
  }
  const std::int64_t parts = (queries + kQueriesOfChunk - 1) / kQueriesOfChunk;
  for_each_chunk(pool_, kv_heads_ * parts, [&](std::int64_t chunk) {
    // Later queries see more keys: they begin first, so that no thread is left with one at the end.
    const std::int64_t first = (parts - 1 - chunk / kv_heads_) * kQueriesOfChunk;
    attend(layer, start, chunk % kv_heads_, first, std::min(first + kQueriesOfChunk, queries));
  });
}

void DecodingLoop::attend(Layer& layer, std::int64_t start, std::int64_t kv_head,
                          std::int64_t first, std::int64_t last) {
  constexpr std::int64_t most = kernels::kAttendRows;
  const std::int64_t group = heads_ / kv_heads_, width = kernels::value_stride(head_dim_);
  alignas(64) float results[most * kWidestHead];
  for (std::int64_t query = first; query < last; query += most) {
    kernels::AttendArgs args;
    args.cache = head_cache(layer, kv_head);
    args.scale = scale_;
    args.rows = std::min(most, last - query);
    for (std::int64_t i = 0; i < args.rows; ++i) {
      const std::int64_t row = (query + i) / group, head = kv_head * group + (query + i) % group;
      args.q[i] = rows_.q + (row * heads_ + head) * head_dim_;
      args.last[i] = start + row + 1;
      args.first[i] = layer.window > 0 ? std::max<std::int64_t>(0, args.last[i] - layer.window) : 0;
      args.out[i] = results + i * width;
    }
    operations_->attend(args);
    for (std::int64_t i = 0; i < args.rows; ++i) {
      const std::int64_t row = (query + i) / group, head = kv_head * group + (query + i) % group;
      std::memcpy(rows_.mixed + (row * heads_ + head) * head_dim_, args.out[i],
                  static_cast<std::size_t>(head_dim_) * 4);
    }
  }
}

void DecodingLoop::multiply(std::initializer_list<Target> targets, const float* x,
                            std::int64_t width, std::int64_t m) {
  RowJob jobs[4];
  std::size_t count = 0;
  for (const auto& target : targets) {
    const Linear& linear = *target.linear;
    if (linear.product && m <= linear.product->most_rows())
      jobs[count++] = {linear.product.get(), target.out, linear.out};
    else
      multiply_by_forward(linear, x, m, target.out);
  }
  graft::multiply(std::span(jobs, count), x, width, m, *operations_, memory_, pool_);
}

void DecodingLoop::multiply_by_forward(const Linear& linear, const float* x, std::int64_t m,
                                       float* out) {
  auto rows = at::empty({1, m, linear.in}, dtype_);
  kernels::store_row_scalar(x, nullptr, m * linear.in, type_, rows.mutable_data_ptr());
  const auto y = linear.module->forward(rows).contiguous();
  operations_->widen(y.const_data_ptr(), m * linear.out, out);
}

}  // namespace graft
