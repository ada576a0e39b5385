#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

#include "graft/model.h"
#include "kernels/scratch.h"
#include "models/decoder_graph.h"
#include "running/row_jobs.h"

namespace graft {

/// The forward pass of one sequence through a decoder of Llama's kind, over rows of plain memory:
/// between embedding and logits nothing is allocated for a token and LibTorch is called only for
/// linear layers that have no RowProduct. Rounds to the model's dtype where forward() does, so that
/// the numbers are its numbers but for the order of sums. The same for any number of threads.
/// Not thread-safe.
class GRAFT_API DecodingLoop {
 public:
  /// nullptr when only forward() runs `model`: another architecture, device or mix of dtypes. The
  /// loop borrows the model, which may not change meanwhile, and keeps the activation mode that is
  /// set now. `room`: tokens that it will not grow for; memory is taken as they come. Throws
  /// std::bad_alloc.
  static std::unique_ptr<DecodingLoop> of(Model& model, std::int64_t room = 0);
  ~DecodingLoop();
  DecodingLoop(const DecodingLoop&) = delete;
  DecodingLoop& operator=(const DecodingLoop&) = delete;

  /// Logits [vocabulary] after the last of `ids`, which follow those of the calls before; good
  /// until the next call. Ids lie in the vocabulary.
  std::span<const float> next(std::span<const std::int64_t> ids);

 private:
  /// A linear layer; without `product`, or with more rows than it is for, forward() multiplies.
  struct Linear {
    nn::Unary* module = nullptr;
    std::unique_ptr<nn::RowProduct> product;
    std::int64_t in = 0, out = 0;
  };
  struct Layer {
    std::vector<float> input_norm, post_norm, q_norm, k_norm;  ///< weights; empty: no such norm
    Linear q, k, v, o, gate, up, down;
    std::int64_t window = 0;
    std::byte* cache = nullptr;  ///< in caches_: keys of all heads, then values of all heads
  };
  struct Rows {
    std::vector<float> x, normed, inner;
    // In inner: those of attention, those of the MLP.
    float *q = nullptr, *k = nullptr, *v = nullptr, *mixed = nullptr;
    float *gate = nullptr, *up = nullptr;
  };

  explicit DecodingLoop(const DecoderGraph& graph);
  bool prepare_linear(Linear& to, nn::Unary* from, std::int64_t in, std::int64_t out);
  bool prepare_norm(std::vector<float>& to, nn::Unary* from, std::int64_t width);
  bool prepare(const DecoderGraph& graph);

  void reserve(std::int64_t tokens);
  void read_positions(std::int64_t start, std::int64_t count);
  void run_block(std::span<const std::int64_t> ids, std::int64_t start);
  void attention(Layer& layer, std::int64_t m, std::int64_t start);
  void attend(Layer& layer, std::int64_t start, std::int64_t kv_head,
              std::int64_t first, std::int64_t last);
  kernels::HeadCache head_cache(Layer& layer, std::int64_t kv_head) const;
  struct Target {
    const Linear* linear;
    float* out;
  };
  void multiply(std::initializer_list<Target> targets, const float* x, std::int64_t width,
                std::int64_t m);
  void multiply_by_forward(const Linear& linear, const float* x, std::int64_t m, float* out);
  template <class Body>
  void for_rows(std::int64_t m, const Body& body) const;

  at::ScalarType dtype_ = at::kFloat;
  kernels::ElementType type_ = kernels::ElementType::f32;
  const kernels::RowOperations* operations_ = nullptr;
  const graft_pool& pool_;
  const Rope* rope_ = nullptr;
  std::int64_t hidden_ = 0, heads_ = 0, kv_heads_ = 0, head_dim_ = 0, intermediate_ = 0;
  float eps_ = 0, scale_ = 1;
  at::Tensor embedding_;  ///< [vocabulary, hidden]
  std::vector<float> norm_;
  Linear head_;
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::vector<Layer> layers_;
  std::unique_ptr<void, Free> caches_;  ///< of all layers

  std::int64_t length_ = 0, capacity_ = 0;  ///< tokens so far; that the caches have room for
  std::vector<float> cos_, sin_;            ///< [positions][rotary_]
  std::int64_t rotary_ = 0, table_start_ = 0, table_count_ = 0;
  Rows rows_;
  std::vector<float> logits_;
  kernels::Scratch memory_;
};

}  // namespace graft
