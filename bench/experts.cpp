// What a block of experts costs: in one piece, dense (one grouped product); a loop over all experts
// of it, as a plain implementation has it; apart, one Linear after the other; and apart in NF4.
// Interleaved, the best of several rounds, and no two calls in a row use the same block, so that
// weights come from memory.
//   graft_bench_experts [ROUNDS]

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "graft/host.h"
#include "graft/model_quantizer.h"
#include "graft/module_graph.h"
#include "graft/nn/experts.h"

using namespace graft;

namespace {

constexpr std::int64_t kHidden = 2048, kIntermediate = 768;  // of Qwen3-30B-A3B
constexpr std::int64_t kLayers = 2;

using Blocks = std::vector<std::shared_ptr<nn::Experts>>;

std::shared_ptr<Model> random_model(std::int64_t experts, std::int64_t chosen) {
  Value config;
  config.set("model_type", "qwen3_moe");
  config.set("architectures", Value::Array{"Qwen3MoeForCausalLM"});
  config.set("vocab_size", std::int64_t{32});
  config.set("hidden_size", kHidden);
  config.set("intermediate_size", kIntermediate);
  config.set("moe_intermediate_size", kIntermediate);
  config.set("num_hidden_layers", kLayers);
  config.set("num_attention_heads", std::int64_t{8});
  config.set("num_key_value_heads", std::int64_t{2});
  config.set("head_dim", std::int64_t{128});
  config.set("num_experts", experts);
  config.set("num_experts_per_tok", chosen);
  config.set("norm_topk_prob", true);
  config.set("decoder_sparse_step", std::int64_t{1});
  config.set("rms_norm_eps", 1e-6);
  config.set("rope_theta", 1e6);
  config.set("max_position_embeddings", std::int64_t{4096});
  config.set("hidden_act", "silu");
  const auto model = build_model(config, at::TensorOptions(at::kMeta).dtype(at::kBFloat16));
  at::manual_seed(1);
  for (const auto& [path, module] : named_modules(std::static_pointer_cast<nn::Block>(model)))
    if (auto* block = dynamic_cast<nn::Block*>(module.get()))
      for (const auto& [name, meta] : block->own_tensors())
        block->set_tensor(name, at::randn(meta.sizes(), at::kFloat).mul_(0.02).to(at::kBFloat16));
  return model;
}

Blocks blocks_of(const std::shared_ptr<Model>& model) {
  Blocks out;
  for (const auto& [path, module] : named_modules(std::static_pointer_cast<nn::Block>(model)))
    if (auto experts = std::dynamic_pointer_cast<nn::Experts>(module)) out.push_back(experts);
  return out;
}

/// The experts of `model` apart, and in NF4 if asked for.
void convert(const Host& host, const std::shared_ptr<Model>& model, bool quantized) {
  Value settings;
  settings.set("quant_method", "bitsandbytes");
  settings.set("load_in_4bit", true);
  settings.set("bnb_4bit_quant_type", "nf4");
  settings.set("bnb_4bit_compute_dtype", "bfloat16");
  auto quantizer = ModelQuantizer::from_config(host, settings, false);
  quantizer.set_predicate([&](const ModuleSpec& spec) {
    return spec.path.find(".experts") != std::string::npos &&
           (quantized || spec.class_name != "Linear");
  });
  quantizer.preprocess_model(model);
  quantizer.postprocess_model(model);
}

/// Every expert computes what its rows are, found by a look at all of them.
at::Tensor loop(nn::Experts& block, const at::Tensor& x, const at::Tensor& ids,
                const at::Tensor& weights) {
  at::Tensor gate_up, down;
  for (const auto& [name, tensor] : block.own_tensors())
    (name.find("down") == std::string::npos ? gate_up : down) = tensor;
  auto y = at::zeros_like(x);
  for (std::int64_t e = 0; e < block.size(); ++e) {
    const auto found = (ids == e).nonzero();
    if (found.size(0) == 0) continue;
    const auto rows = found.select(1, 0), column = found.select(1, 1);
    const auto parts = at::linear(x.index_select(0, rows), gate_up[e]).chunk(2, -1);
    const auto out = at::linear(at::silu(parts[0]) * parts[1], down[e]);
    y.index_add_(0, rows, out * weights.index({rows, column}).unsqueeze(1).to(out.scalar_type()));
  }
  return y;
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 7;
  const c10::InferenceMode guard;
  const Host host;
  std::printf("%d threads, hidden %lld, intermediate %lld, bfloat16, milliseconds a call\n",
              at::get_num_threads(), static_cast<long long>(kHidden),
              static_cast<long long>(kIntermediate));
  std::printf("%8s %7s %7s | %9s %9s %9s %9s | grouped/loop nf4/grouped\n", "experts", "chosen",
              "tokens", "grouped", "loop", "apart", "nf4");
  for (const std::int64_t experts : {8, 64}) {
    const std::int64_t chosen = experts == 8 ? 2 : 8;
    const auto grouped = random_model(experts, chosen), apart = random_model(experts, chosen),
               nf4 = random_model(experts, chosen);
    convert(host, apart, false);
    convert(host, nf4, true);
    for (const std::int64_t tokens : {1, 16, 512}) {
      at::manual_seed(tokens);
      const auto x = at::randn({tokens, kHidden}).to(at::kBFloat16);
      const auto ids =
          at::rand({tokens, experts}).argsort(std::int64_t{-1}).narrow(1, 0, chosen).contiguous();
      const auto weights = at::rand({tokens, chosen});
      std::map<std::string, double> best;
      const auto time = [&](const std::string& name, const Blocks& blocks, auto&& call) {
        const int calls = tokens == 1 ? 16 : 2;
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < calls; ++i) call(*blocks[static_cast<std::size_t>(i) % blocks.size()]);
        const double took =
            std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
                .count() /
            calls;
        const auto [known, first] = best.emplace(name, took);
        known->second = std::min(known->second, took);
      };
      const auto forward = [&](nn::Experts& block) { block.forward(x, ids, weights); };
      for (int round = 0; round < rounds; ++round) {
        time("grouped", blocks_of(grouped), forward);
        time("loop", blocks_of(grouped), [&](nn::Experts& block) { loop(block, x, ids, weights); });
        time("apart", blocks_of(apart), forward);
        time("nf4", blocks_of(nf4), forward);
      }
      std::printf("%8lld %7lld %7lld | %9.2f %9.2f %9.2f %9.2f | %12.2f %11.2f\n",
                  static_cast<long long>(experts), static_cast<long long>(chosen),
                  static_cast<long long>(tokens), best["grouped"], best["loop"], best["apart"],
                  best["nf4"], best["loop"] / best["grouped"], best["grouped"] / best["nf4"]);
      std::fflush(stdout);
    }
  }
}
