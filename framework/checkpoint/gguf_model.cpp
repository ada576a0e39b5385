#include "checkpoint/gguf_model.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <unordered_set>

#include "checkpoint/gguf_fields.h"
#include "checkpoint/gguf_rope.h"
#include "checkpoint/safetensors_header.h"
#include "graft/error.h"

namespace graft {
namespace {

/// The decoder families whose files differ only in these points.
struct Family {
  std::string_view architecture, model_type, class_name;
  bool interleaved;      ///< rows of q and k, see GgufSource
  bool biases_optional;  ///< on all linears; else always on q, k, v if `qkv_biases`, else none
  bool qkv_biases;
  bool head_norms;  ///< a norm over each head of q and k
};
constexpr std::array<Family, 3> kFamilies{{
    {"llama", "llama", "LlamaForCausalLM", true, true, false, false},
    {"qwen2", "qwen2", "Qwen2ForCausalLM", false, false, true, false},
    {"qwen3", "qwen3", "Qwen3ForCausalLM", false, false, false, true},
}};

const Family& family_of(const GgufHeader& header) {
  const auto architecture = header.at("general.architecture").as_string();
  std::string known;
  for (const auto& family : kFamilies) {
    if (family.architecture == architecture) return family;
    known += (known.empty() ? "" : ", ") + std::string(family.architecture);
  }
  throw Error(ErrorKind::model, "unsupported architecture of a GGUF file")
      .expected("one of " + known)
      .found(quote(architecture));
}

void refuse_other_files(const GgufHeader& header) {
  if (const GgufValue* type = header.find("general.type"); type && type->as_string() != "model")
    throw Error(ErrorKind::model, "this GGUF file is no model")
        .at("'general.type'")
        .expected("'model'")
        .found(quote(type->as_string()));
  if (const GgufValue* parts = header.find("split.count"); parts && parts->as_unsigned() > 1)
    throw Error(ErrorKind::model, "this is one of several files of a model")
        .found(std::to_string(parts->as_unsigned()) + " files")
        .hint("join them with `llama-gguf-split --merge`");
  const GgufValue* version = header.find("general.quantization_version");
  if (version && version->as_unsigned() != 2)
    throw Error(ErrorKind::model, "unsupported version of the quantized blocks")
        .at("'general.quantization_version'")
        .expected("2")
        .found(version->text());
}

/// Collects the tensors of the folder and finds out which ones of the file nobody asked for.
class TensorNames {
 public:
  TensorNames(const GgufHeader& header, std::vector<GgufSource>& out)
      : header_(header), out_(out) {}

  bool has(std::string_view gguf_name) const { return header_.find_tensor(gguf_name) != nullptr; }

  void add(const std::string& gguf_name, std::string name, std::vector<std::int64_t> shape,
           std::int64_t interleaved_heads = 0) {
    const GgufTensor* tensor = header_.find_tensor(gguf_name);
    if (!tensor) throw Error(ErrorKind::model, "the tensor " + quote(gguf_name) + " is missing");
    if (tensor->shape != shape)
      throw Error(ErrorKind::model, "wrong shape")
          .at("tensor " + quote(gguf_name))
          .expected(shape_text(shape))
          .found(shape_text(tensor->shape));
    used_.insert(tensor);
    out_.push_back({std::move(name), tensor, interleaved_heads});
  }

  void use(const GgufTensor* tensor) { used_.insert(tensor); }

  void finish() const {
    for (const auto& tensor : header_.tensors())
      if (!used_.contains(&tensor))
        throw Error(ErrorKind::model,
                    "the model of this architecture has no tensor " + quote(tensor.name));
  }

 private:
  const GgufHeader& header_;
  std::vector<GgufSource>& out_;
  std::unordered_set<const GgufTensor*> used_;
};

struct Sizes {
  std::int64_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, context;
};

Sizes read_sizes(GgufFields& fields, const GgufHeader& header) {
  Sizes s{};
  s.layers = fields.size("block_count");
  s.hidden = fields.size("embedding_length");
  s.intermediate = fields.size("feed_forward_length");
  s.context = fields.size("context_length");
  s.heads = fields.size("attention.head_count");
  s.kv_heads = fields.size("attention.head_count_kv", s.heads);
  if (s.heads % s.kv_heads != 0)
    throw Error(ErrorKind::model, "head_count must be a multiple of head_count_kv")
        .found(std::to_string(s.heads) + " and " + std::to_string(s.kv_heads));
  if (!fields.has("attention.key_length") && s.hidden % s.heads != 0)
    throw Error(ErrorKind::model, "embedding_length must be a multiple of head_count")
        .found(std::to_string(s.hidden) + " and " + std::to_string(s.heads));
  s.head_dim = fields.size("attention.key_length", std::max<std::int64_t>(1, s.hidden / s.heads));
  if (s.head_dim % 2 != 0)
    throw Error(ErrorKind::model, "the size of a head must be even")
        .found(std::to_string(s.head_dim));
  const auto equals_head = static_cast<double>(s.head_dim);
  fields.require("attention.value_length", equals_head, "keys and values of different sizes");
  fields.require("rope.dimension_count", equals_head, "rotation of a part of each head");
  const auto tokens = header.at("tokenizer.ggml.tokens").as_strings().size();
  s.vocabulary = fields.size("vocab_size", static_cast<std::int64_t>(tokens));
  if (s.vocabulary != static_cast<std::int64_t>(tokens))
    throw Error(ErrorKind::model, "vocab_size is not the number of tokens")
        .expected(std::to_string(tokens))
        .found(std::to_string(s.vocabulary));
  return s;
}

/// Fields that say that the model is an ordinary one; with other values it is refused.
void refuse_variants(GgufFields& fields, const Sizes& sizes) {
  if (fields.has("expert_count")) {
    fields.require("expert_count", 0, "models with experts cannot be imported");
    fields.ignore("expert_used_count");
  }
  fields.require("attention.causal", 1, "attention that is not causal");
  fields.require("use_parallel_residual", 0, "parallel residuals");
  fields.require("nextn_predict_layers", 0, "layers that predict several tokens");
  // A window as long as the context is none.
  if (fields.has("attention.sliding_window") &&
      fields.size("attention.sliding_window") < sizes.context)
    throw Error(ErrorKind::model, "attention with a sliding window cannot be imported")
        .at("'attention.sliding_window'");
  const std::string layout = fields.string("tensor_data_layout", "Meta AI original pth");
  if (layout != "Meta AI original pth")
    throw Error(ErrorKind::model, "unknown layout of tensors")
        .at("'tensor_data_layout'")
        .found(quote(layout));
}

void map_layer(TensorNames& tensors, const Family& family, const Sizes& s, std::int64_t layer,
               bool attention_bias, bool mlp_bias) {
  const std::string from = "blk." + std::to_string(layer) + ".";
  const std::string to = "model.layers." + std::to_string(layer) + ".";
  const std::int64_t queries = s.heads * s.head_dim, keys = s.kv_heads * s.head_dim;
  const auto linear = [&](const char* old_name, const char* new_name, std::int64_t in,
                          std::int64_t out, bool bias, std::int64_t interleaved = 0) {
    tensors.add(from + old_name + ".weight", to + new_name + ".weight", {out, in}, interleaved);
    if (bias) tensors.add(from + old_name + ".bias", to + new_name + ".bias", {out}, interleaved);
  };
  const auto norm = [&](const char* old_name, const char* new_name, std::int64_t size) {
    tensors.add(from + old_name + ".weight", to + new_name + ".weight", {size});
  };
  const bool qkv_bias = attention_bias || family.qkv_biases;
  norm("attn_norm", "input_layernorm", s.hidden);
  linear("attn_q", "self_attn.q_proj", s.hidden, queries, qkv_bias,
         family.interleaved ? s.heads : 0);
  linear("attn_k", "self_attn.k_proj", s.hidden, keys, qkv_bias,
         family.interleaved ? s.kv_heads : 0);
  linear("attn_v", "self_attn.v_proj", s.hidden, keys, qkv_bias);
  linear("attn_output", "self_attn.o_proj", queries, s.hidden, attention_bias);
  if (family.head_norms) {
    norm("attn_q_norm", "self_attn.q_norm", s.head_dim);
    norm("attn_k_norm", "self_attn.k_norm", s.head_dim);
  }
  norm("ffn_norm", "post_attention_layernorm", s.hidden);
  linear("ffn_gate", "mlp.gate_proj", s.hidden, s.intermediate, mlp_bias);
  linear("ffn_up", "mlp.up_proj", s.hidden, s.intermediate, mlp_bias);
  linear("ffn_down", "mlp.down_proj", s.intermediate, s.hidden, mlp_bias);
}

/// Token ids that end, start and fill text, for config.json and generation_config.json.
void set_token_ids(const GgufHeader& header, std::int64_t vocabulary, GgufModel& model) {
  const auto id = [&](std::string_view name) -> std::optional<std::int64_t> {
    const std::string key = "tokenizer.ggml." + std::string(name) + "_token_id";
    const GgufValue* value = header.find(key);
    if (!value) return std::nullopt;
    const std::uint64_t number = value->as_unsigned();
    if (number >= static_cast<std::uint64_t>(vocabulary))
      throw Error(ErrorKind::model, "no such token")
          .at(quote(key))
          .expected("below " + std::to_string(vocabulary))
          .found(std::to_string(number));
    return static_cast<std::int64_t>(number);
  };
  for (Value* file : {&model.config, &model.generation_config}) {
    if (const auto bos = id("bos")) file->set("bos_token_id", *bos);
    if (const auto eos = id("eos")) file->set("eos_token_id", *eos);
    if (const auto pad = id("padding")) file->set("pad_token_id", *pad);
  }
  // The ends of a turn and of a message end an answer too.
  Value::Array ends;
  for (const char* name : {"eos", "eot", "eom"})
    if (const auto end = id(name); end && std::find(ends.begin(), ends.end(), *end) == ends.end())
      ends.emplace_back(*end);
  if (ends.size() > 1) model.generation_config.set("eos_token_id", std::move(ends));
}

}  // namespace

double shortest_double(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), static_cast<float>(value)).ptr;
  double out = value;
  std::from_chars(text, end, out);
  return out;
}

GgufModel describe_gguf_model(const GgufHeader& header) {
  refuse_other_files(header);
  const Family& family = family_of(header);
  GgufModel model;
  model.architecture = family.architecture;
  GgufFields fields(header, model.architecture);
  const Sizes s = read_sizes(fields, header);
  refuse_variants(fields, s);
  // Bounds the loop below; every layer has more than one tensor.
  if (static_cast<std::uint64_t>(s.layers) > header.tensors().size())
    throw Error(ErrorKind::model, "there are more layers than tensors")
        .at("'block_count'")
        .found(std::to_string(s.layers));

  TensorNames tensors(header, model.tensors);
  const bool tied = !tensors.has("output.weight");
  const bool attention_bias = family.biases_optional && tensors.has("blk.0.attn_q.bias");
  const bool mlp_bias = family.biases_optional && tensors.has("blk.0.ffn_up.bias");
  tensors.add("token_embd.weight", "model.embed_tokens.weight", {s.vocabulary, s.hidden});
  for (std::int64_t layer = 0; layer < s.layers; ++layer)
    map_layer(tensors, family, s, layer, attention_bias, mlp_bias);
  tensors.add("output_norm.weight", "model.norm.weight", {s.hidden});
  if (!tied) tensors.add("output.weight", "lm_head.weight", {s.vocabulary, s.hidden});
  if (const GgufTensor* factors = header.find_tensor("rope_freqs.weight")) {
    if (factors->shape != std::vector<std::int64_t>{s.head_dim / 2} ||
        factors->format->name != "F32")
      throw Error(ErrorKind::model, "wrong shape or type")
          .at("tensor 'rope_freqs.weight'")
          .expected(shape_text({s.head_dim / 2}) + " F32")
          .found(shape_text(factors->shape) + " " + std::string(factors->format->name));
    tensors.use(factors);
    model.rope_factors = factors;
  }
  tensors.finish();

  Value& c = model.config;
  c.set("architectures", Value::Array{Value(family.class_name)});
  c.set("model_type", family.model_type);
  c.set("hidden_act", "silu");
  c.set("hidden_size", s.hidden);
  c.set("intermediate_size", s.intermediate);
  c.set("num_hidden_layers", s.layers);
  c.set("num_attention_heads", s.heads);
  c.set("num_key_value_heads", s.kv_heads);
  c.set("head_dim", s.head_dim);
  c.set("vocab_size", s.vocabulary);
  c.set("max_position_embeddings", s.context);
  c.set("rms_norm_eps", shortest_double(fields.positive("attention.layer_norm_rms_epsilon")));
  c.set("rope_theta", shortest_double(fields.positive("rope.freq_base", 10000.0)));
  if (Value scaling = gguf_rope_scaling(fields); !scaling.is_null()) {
    if (model.rope_factors)
      throw Error(ErrorKind::model, "two scalings of the rotation at once")
          .found("linear and 'rope_freqs.weight'");
    c.set("rope_scaling", std::move(scaling));
  }
  if (!family.qkv_biases) c.set("attention_bias", attention_bias);
  if (family.biases_optional) c.set("mlp_bias", mlp_bias);
  c.set("tie_word_embeddings", tied);
  set_token_ids(header, s.vocabulary, model);
  fields.finish();
  return model;
}

}  // namespace graft
