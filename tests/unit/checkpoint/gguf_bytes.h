#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/gguf_header.h"
#include "graft/error.h"

namespace graft::test {

/// `value` as its little-endian bytes.
template <class T>
std::string le(T value) {
  std::string out(sizeof(T), '\0');
  std::memcpy(out.data(), &value, sizeof(T));
  return out;
}

inline std::string gguf_text(std::string_view text) {
  return le<std::uint64_t>(text.size()) + std::string(text);
}

inline std::string gguf_array(GgufType element, std::uint64_t count, const std::string& bytes) {
  return le(static_cast<std::uint32_t>(element)) + le(count) + bytes;
}

/// Builds GGUF files, good ones and bad ones.
struct GgufBytes {
  std::uint32_t version = 3;
  std::vector<std::pair<std::string, std::string>> metadata;  ///< key, type and value
  struct Tensor {
    std::string name;
    std::vector<std::uint64_t> sizes;  ///< as in the file: columns first
    std::uint32_t format;
    std::string data;
    std::int64_t moved = 0;  ///< added to the offset that it should have
  };
  std::vector<Tensor> tensors;
  std::uint64_t alignment = 32;

  GgufBytes& set(const std::string& key, GgufType type, const std::string& bytes) {
    remove(key);
    metadata.emplace_back(key, le(static_cast<std::uint32_t>(type)) + bytes);
    return *this;
  }
  GgufBytes& u32(const std::string& key, std::uint32_t value) {
    return set(key, GgufType::u32, le(value));
  }
  GgufBytes& f32(const std::string& key, float value) { return set(key, GgufType::f32, le(value)); }
  GgufBytes& flag(const std::string& key, bool value) {
    return set(key, GgufType::boolean, le<std::uint8_t>(value));
  }
  GgufBytes& text(const std::string& key, std::string_view value) {
    return set(key, GgufType::string, gguf_text(value));
  }
  GgufBytes& texts(const std::string& key, const std::vector<std::string>& values) {
    std::string bytes;
    for (const auto& value : values) bytes += gguf_text(value);
    return set(key, GgufType::array, gguf_array(GgufType::string, values.size(), bytes));
  }
  GgufBytes& remove(const std::string& key) {
    std::erase_if(metadata, [&](const auto& row) { return row.first == key; });
    return *this;
  }
  /// Float32 values, `start` and what follows in steps of 1.
  GgufBytes& tensor(const std::string& name, std::vector<std::uint64_t> sizes, float start = 1) {
    std::uint64_t count = 1;
    for (const auto size : sizes) count *= size;
    std::string data;
    for (std::uint64_t i = 0; i < count; ++i) data += le(start + static_cast<float>(i));
    tensors.push_back({name, std::move(sizes), 0, std::move(data)});
    return *this;
  }

  std::string header() const {
    std::string out = "GGUF" + le(version) + le<std::uint64_t>(tensors.size()) +
                      le<std::uint64_t>(metadata.size());
    for (const auto& [key, value] : metadata) out += gguf_text(key) + value;
    std::uint64_t offset = 0;
    for (const auto& t : tensors) {
      out += gguf_text(t.name) + le(static_cast<std::uint32_t>(t.sizes.size()));
      for (const auto size : t.sizes) out += le(size);
      out += le(t.format) + le(offset + static_cast<std::uint64_t>(t.moved));
      offset = pad(offset + t.data.size());
    }
    return out;
  }
  std::string file() const {
    std::string out = header();
    for (const auto& t : tensors) {
      out.resize(pad(out.size()));
      out += t.data;
    }
    out.resize(pad(out.size()));
    return out;
  }

 private:
  std::uint64_t pad(std::uint64_t size) const {
    return (size + alignment - 1) / alignment * alignment;
  }
};

inline GgufHeader parse_gguf(const std::string& bytes) {
  return parse_gguf_header(std::make_shared<const std::string>(bytes), bytes.size()).value();
}

/// What the function throws, or "" when it does not.
template <class Function>
std::string refusal(const Function& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

inline bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != text.npos;
}

/// A whole llama of one layer: 2 heads of 4, 1 of keys and values, 3 tokens.
inline GgufBytes small_llama() {
  GgufBytes out;
  out.text("general.architecture", "llama")
      .u32("llama.block_count", 1)
      .u32("llama.embedding_length", 8)
      .u32("llama.feed_forward_length", 6)
      .u32("llama.context_length", 64)
      .u32("llama.attention.head_count", 2)
      .u32("llama.attention.head_count_kv", 1)
      .f32("llama.attention.layer_norm_rms_epsilon", 1e-5f)
      .text("tokenizer.ggml.model", "gpt2")
      .text("tokenizer.ggml.pre", "gpt-2")
      .texts("tokenizer.ggml.tokens", {"a", "b", "ab", "<end>"})
      .set("tokenizer.ggml.token_type", GgufType::array,
           gguf_array(GgufType::i32, 4, le(1) + le(1) + le(1) + le(3)))
      .texts("tokenizer.ggml.merges", {"a b"})
      .u32("tokenizer.ggml.eos_token_id", 3)
      .tensor("token_embd.weight", {8, 4})
      .tensor("output_norm.weight", {8})
      .tensor("blk.0.attn_norm.weight", {8})
      .tensor("blk.0.attn_q.weight", {8, 8}, 100)
      .tensor("blk.0.attn_k.weight", {8, 4}, 200)
      .tensor("blk.0.attn_v.weight", {8, 4}, 300)
      .tensor("blk.0.attn_output.weight", {8, 8})
      .tensor("blk.0.ffn_norm.weight", {8})
      .tensor("blk.0.ffn_gate.weight", {8, 6})
      .tensor("blk.0.ffn_up.weight", {8, 6})
      .tensor("blk.0.ffn_down.weight", {6, 8});
  return out;
}

}  // namespace graft::test
