#include "checkpoint/gguf_tokenizer.h"

#include <doctest/doctest.h>

#include "gguf_bytes.h"
#include "graft/error.h"

using namespace graft;
using namespace graft::test;

namespace {

GgufTokenizer described(const GgufBytes& file, std::string_view splitting = {}) {
  const GgufHeader header = parse_gguf(file.file());
  return describe_gguf_tokenizer(header, splitting);
}

std::string refused(const GgufBytes& file, std::string_view splitting = {}) {
  return refusal([&] { described(file, splitting); });
}

}  // namespace

TEST_CASE("a byte-level tokenizer becomes a tokenizer.json") {
  const GgufTokenizer out = described(small_llama().text("tokenizer.chat_template", "{{x}}"));
  CHECK(to_json(out.tokenizer) ==
        R"({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [{"id": 3, )"
        R"("content": "<end>", "single_word": false, "lstrip": false, "rstrip": false, )"
        R"("normalized": false, "special": true}], "normalizer": null, "pre_tokenizer": )"
        R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, )"
        R"("use_regex": true}, "post_processor": null, "decoder": {"type": "ByteLevel", )"
        R"("add_prefix_space": false, "trim_offsets": true, "use_regex": true}, "model": )"
        R"({"type": "BPE", "dropout": null, "unk_token": null, )"
        R"("continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, )"
        R"("byte_fallback": false, "ignore_merges": false, "vocab": {"a": 0, "b": 1, "ab": 2, )"
        R"("<end>": 3}, "merges": [["a", "b"]]}})");
  CHECK(to_json(out.tokenizer_config) ==
        R"({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false, )"
        R"("eos_token": "<end>", "add_bos_token": false, "add_eos_token": false, )"
        R"("chat_template": "{{x}}"})");
}

TEST_CASE("every way to split text has its own pre-tokenizer") {
  const auto pre = [](const char* name) {
    return described(small_llama()
                         .text("tokenizer.ggml.pre", name)
                         .flag("tokenizer.ggml.add_bos_token", false))
        .tokenizer;
  };
  CHECK(contains(to_json(pre("smollm")), R"("Regex": "\\p{Nd}")"));
  const Value llama3 = pre("llama-bpe");
  CHECK(contains(to_json(llama3.at("pre_tokenizer")), R"(\\p{N}{1,3}|)"));
  CHECK(contains(to_json(llama3.at("pre_tokenizer")), R"("use_regex": false)"));
  CHECK(llama3.at("model").get_bool("ignore_merges", false));
  const Value qwen2 = pre("qwen2");
  CHECK(contains(to_json(qwen2.at("pre_tokenizer")), R"(|\\p{N}| ?)"));
  CHECK(to_json(qwen2.at("normalizer")) == R"({"type": "NFC"})");
}

TEST_CASE("tokens that every text gets are in the post-processor") {
  auto file = small_llama().u32("tokenizer.ggml.bos_token_id", 2);
  CHECK(described(file).tokenizer.find("post_processor") == nullptr);
  file.flag("tokenizer.ggml.add_bos_token", true).flag("tokenizer.ggml.add_eos_token", true);
  CHECK(
      to_json(described(file).tokenizer.at("post_processor").at("single")) ==
      R"([{"SpecialToken": {"id": "ab", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, )"
      R"({"SpecialToken": {"id": "<end>", "type_id": 0}}])");
  // Llama 3 begins texts unless its file says otherwise.
  auto llama3 = small_llama().text("tokenizer.ggml.pre", "llama-bpe");
  CHECK(contains(refused(llama3), "'tokenizer.ggml.bos_token_id': a token that every text gets"));
  CHECK(described(llama3.u32("tokenizer.ggml.bos_token_id", 2)).tokenizer.find("post_processor"));
  CHECK(contains(refused(small_llama()
                             .remove("tokenizer.ggml.eos_token_id")
                             .flag("tokenizer.ggml.add_eos_token", true)),
                 "'tokenizer.ggml.eos_token_id': a token that every text gets"));
}

TEST_CASE("a file that does not say how to split text needs to be told") {
  for (auto file : {small_llama().remove("tokenizer.ggml.pre"),
                    small_llama().text("tokenizer.ggml.pre", "default")}) {
    CHECK(contains(refused(file), "the file does not say how its tokenizer splits text"));
    CHECK(contains(to_json(described(file, "qwen2").tokenizer), "NFC"));
    CHECK(contains(refused(file, "other"), "--splitting: unknown way to split text"));
  }
  CHECK(contains(refused(small_llama(), "qwen2"), "--splitting: the file says how"));
  CHECK(refused(small_llama(), "gpt-2") == "");
}

TEST_CASE("tokenizers of other kinds are refused by name") {
  CHECK(contains(refused(small_llama().text("tokenizer.ggml.model", "llama")),
                 "'tokenizer.ggml.model': unsupported kind of tokenizer: expected 'gpt2' "
                 "(byte-level BPE), found 'llama'"));
  CHECK(contains(
      refused(small_llama().text("tokenizer.ggml.pre", "viking")),
      "expected one of gpt-2, smollm, llama-bpe, llama3, llama-v3, qwen2, found 'viking'"));
  CHECK(contains(refused(small_llama().flag("tokenizer.ggml.add_space_prefix", true)),
                 "'tokenizer.ggml.add_space_prefix'"));
}

TEST_CASE("tokens and merges that cannot be are refused") {
  const auto tokens = [](const std::vector<std::string>& list) {
    return refused(small_llama().texts("tokenizer.ggml.tokens", list));
  };
  CHECK(contains(tokens({"a", "b", "c"}), "differ in length: expected 3, found 4"));
  CHECK(contains(tokens({"a", "b", "a", "c"}), "token 2: the token 'a' occurs twice"));
  CHECK(contains(tokens({"a", "b", "\xC3", "c"}), "token 2: a token is not UTF-8"));
  CHECK(contains(tokens({"a", "", "b", "c"}), "token 1: a token is empty"));
  const auto merge = [](const std::string& text) {
    return refused(small_llama().texts("tokenizer.ggml.merges", {text}));
  };
  for (const char* bad : {"ab", " ab", "ab ", "a b c", "a \xFF", ""})
    CHECK(contains(merge(bad), "merge 0: a merge is not two symbols"));
  CHECK(contains(
      refused(small_llama().set("tokenizer.ggml.token_type", GgufType::array,
                                gguf_array(GgufType::i32, 4, le(1) + le(1) + le(1) + le(7)))),
      "token 3: unknown type of a token: expected 1 to 6, found 7"));
  CHECK(contains(refused(small_llama().u32("tokenizer.ggml.padding_token_id", 4)),
                 "'tokenizer.ggml.padding_token_id': no such token"));
  CHECK(contains(refused(small_llama().text("tokenizer.chat_template", "\xFF")),
                 "'tokenizer.chat_template': the text is not UTF-8"));
}
