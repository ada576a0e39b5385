#include "checkpoint/gguf_tokenizer.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <unordered_set>

#include "graft/error.h"
#include "text/utf8.h"

namespace graft {
namespace {

enum TokenType : std::int64_t { kNormal = 1, kControl = 3, kUserDefined = 4, kLastType = 6 };

/// How text is split before BPE, by the name that llama.cpp has for it.
struct Splitting {
  std::string_view name;
  std::string_view pattern;  ///< of a Split; empty: GPT-2's, which ByteLevel has built in
  bool digits_alone = false;
  bool composes = false;     ///< normalizes to NFC
  bool whole_words = false;  ///< a word of the vocabulary needs no merges
  bool begins_by_default = false;
};

constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr std::array<Splitting, 6> kSplittings{{
    {"gpt-2", ""},
    {"smollm", "", true},
    {"llama-bpe", kLlama3Pattern, false, false, true, true},
    {"llama3", kLlama3Pattern, false, false, true, true},
    {"llama-v3", kLlama3Pattern, false, false, true, true},
    {"qwen2", kQwen2Pattern, false, true},
}};

const Splitting& splitting_named(const GgufHeader& header, std::string_view instead) {
  const GgufValue* said = header.find("tokenizer.ggml.pre");
  std::string_view name = said ? said->as_string() : "";
  std::string known;
  for (const auto& row : kSplittings) known += (known.empty() ? "" : ", ") + std::string(row.name);
  const bool unsaid = name.empty() || name == "default";
  if (unsaid && instead.empty())
    throw Error(ErrorKind::model, "the file does not say how its tokenizer splits text")
        .at("'tokenizer.ggml.pre'")
        .hint("find out from where the model comes and give it with --splitting: " + known);
  if (!unsaid && !instead.empty() && instead != name)
    throw Error(ErrorKind::usage, "the file says how its tokenizer splits text")
        .at("--splitting")
        .expected(quote(name))
        .found(quote(instead));
  if (unsaid) name = instead;
  for (const auto& row : kSplittings)
    if (row.name == name) return row;
  throw Error(unsaid ? ErrorKind::usage : ErrorKind::model, "unknown way to split text into words")
      .at(unsaid ? "--splitting" : "'tokenizer.ggml.pre'")
      .expected("one of " + known)
      .found(quote(name));
}

Value object(std::initializer_list<std::pair<const char*, Value>> members) {
  Value out{Value::Object{}};
  for (const auto& [key, value] : members) out.set(key, value);
  return out;
}

Value byte_level(bool pattern) {
  return object({{"type", "ByteLevel"},
                 {"add_prefix_space", false},
                 {"trim_offsets", true},
                 {"use_regex", pattern}});
}

Value split(std::string_view pattern) {
  return object({{"type", "Split"},
                 {"pattern", object({{"Regex", pattern}})},
                 {"behavior", "Isolated"},
                 {"invert", false}});
}

Value pre_tokenizer(const Splitting& splitting) {
  Value first;
  if (splitting.digits_alone) {
    // Not {"type": "Digits"}, which also takes out fractions and superscripts: Transformers' import
    // of these files leaves them with their words.
    first = split(R"(\p{Nd})");
  } else if (!splitting.pattern.empty()) {
    first = split(splitting.pattern);
  } else {
    return byte_level(true);
  }
  return object(
      {{"type", "Sequence"},
       {"pretokenizers", Value::Array{std::move(first), byte_level(splitting.pattern.empty())}}});
}

/// The tokens as the file has them, checked.
struct Vocabulary {
  std::vector<std::string_view> tokens;
  std::vector<std::int64_t> types;

  explicit Vocabulary(const GgufHeader& header) {
    tokens = header.at("tokenizer.ggml.tokens").as_strings();
    if (const GgufValue* value = header.find("tokenizer.ggml.token_type")) {
      types = value->as_integers();
    } else {
      types.assign(tokens.size(), kNormal);
    }
    if (types.size() != tokens.size())
      throw Error(ErrorKind::model, "the lists of tokens and of their types differ in length")
          .at("'tokenizer.ggml.token_type'")
          .expected(std::to_string(tokens.size()))
          .found(std::to_string(types.size()));
    std::unordered_set<std::string_view> seen;
    for (std::size_t id = 0; id < tokens.size(); ++id) {
      const std::string place = "token " + std::to_string(id);
      if (tokens[id].empty() || !is_valid_utf8(tokens[id]))
        throw Error(ErrorKind::model,
                    tokens[id].empty() ? "a token is empty" : "a token is not UTF-8")
            .at(place);
      if (types[id] < kNormal || types[id] > kLastType)
        throw Error(ErrorKind::model, "unknown type of a token")
            .at(place)
            .expected("1 to 6")
            .found(std::to_string(types[id]));
      if (!seen.insert(tokens[id]).second)
        throw Error(ErrorKind::model, "the token " + quote(tokens[id]) + " occurs twice").at(place);
    }
  }
};

Value::Array merges_of(const GgufHeader& header) {
  Value::Array out;
  for (const auto merge : header.at("tokenizer.ggml.merges").as_strings()) {
    // Symbols hold no space: the byte-level alphabet writes it as another character.
    const auto space = merge.find(' ');
    if (space == merge.npos || space == 0 || space + 1 == merge.size() ||
        merge.find(' ', space + 1) != merge.npos || !is_valid_utf8(merge))
      throw Error(ErrorKind::model, "a merge is not two symbols with a space between")
          .at("merge " + std::to_string(out.size()))
          .found(quote(merge));
    out.push_back(Value::Array{Value(merge.substr(0, space)), Value(merge.substr(space + 1))});
  }
  return out;
}

Value special_token(std::string_view token) {
  return object({{"SpecialToken", object({{"id", token}, {"type_id", 0}})}});
}

/// Puts the tokens that begin and end every text around it; null when there are none.
Value post_processor(const std::optional<std::pair<std::string_view, std::int64_t>>& begin,
                     const std::optional<std::pair<std::string_view, std::int64_t>>& end) {
  if (!begin && !end) return {};
  Value special{Value::Object{}};
  for (const auto& token : {begin, end})
    if (token && !special.find(token->first))
      special.set(token->first, object({{"id", token->first},
                                        {"ids", Value::Array{Value(token->second)}},
                                        {"tokens", Value::Array{Value(token->first)}}}));
  const auto part = [&](Value::Array& out, const char* sequence, int type) {
    if (begin) out.push_back(special_token(begin->first));
    out.push_back(object({{"Sequence", object({{"id", sequence}, {"type_id", type}})}}));
    if (end) out.push_back(special_token(end->first));
  };
  Value::Array single, pair;
  part(single, "A", 0);
  part(pair, "A", 0);
  part(pair, "B", 0);
  return object({{"type", "TemplateProcessing"},
                 {"single", std::move(single)},
                 {"pair", std::move(pair)},
                 {"special_tokens", std::move(special)}});
}

bool flag(const GgufHeader& header, const char* key, bool otherwise) {
  const GgufValue* value = header.find(key);
  return value ? value->as_bool() : otherwise;
}

}  // namespace

GgufTokenizer describe_gguf_tokenizer(const GgufHeader& header,
                                      std::string_view splitting_instead) {
  const auto kind = header.at("tokenizer.ggml.model").as_string();
  if (kind != "gpt2")
    throw Error(ErrorKind::model, "unsupported kind of tokenizer")
        .at("'tokenizer.ggml.model'")
        .expected("'gpt2' (byte-level BPE)")
        .found(quote(kind))
        .hint("convert the model from its Hugging Face folder instead");
  const Splitting& splitting = splitting_named(header, splitting_instead);
  if (flag(header, "tokenizer.ggml.add_space_prefix", false))
    throw Error(ErrorKind::model, "a space before every text is not supported for 'gpt2'")
        .at("'tokenizer.ggml.add_space_prefix'");
  const Vocabulary vocabulary(header);
  const auto& tokens = vocabulary.tokens;

  Value::Object ids;
  Value::Array added;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    ids.emplace_back(std::string(tokens[id]), Value(static_cast<std::int64_t>(id)));
    const auto type = vocabulary.types[id];
    if (type == kControl || type == kUserDefined)
      added.push_back(object({{"id", static_cast<std::int64_t>(id)},
                              {"content", tokens[id]},
                              {"single_word", false},
                              {"lstrip", false},
                              {"rstrip", false},
                              {"normalized", false},
                              {"special", type == kControl}}));
  }

  GgufTokenizer out;
  Value& config = out.tokenizer_config;
  config = object(
      {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}});
  using Token = std::optional<std::pair<std::string_view, std::int64_t>>;
  const auto named = [&](const char* name, const char* field) -> Token {
    const std::string key = "tokenizer.ggml." + std::string(name) + "_token_id";
    const GgufValue* value = header.find(key);
    if (!value) return std::nullopt;
    const std::uint64_t id = value->as_unsigned();
    if (id >= tokens.size())
      throw Error(ErrorKind::model, "no such token")
          .at(quote(key))
          .expected("below " + std::to_string(tokens.size()))
          .found(std::to_string(id));
    config.set(field, tokens[id]);
    return std::pair(tokens[id], static_cast<std::int64_t>(id));
  };
  const Token begin = named("bos", "bos_token"), end = named("eos", "eos_token");
  named("unknown", "unk_token");
  named("padding", "pad_token");
  const bool adds_begin = flag(header, "tokenizer.ggml.add_bos_token", splitting.begins_by_default);
  const bool adds_end = flag(header, "tokenizer.ggml.add_eos_token", false);
  if ((adds_begin && !begin) || (adds_end && !end))
    throw Error(ErrorKind::model, "a token that every text gets has no id")
        .at(adds_begin && !begin ? "'tokenizer.ggml.bos_token_id'"
                                 : "'tokenizer.ggml.eos_token_id'");
  config.set("add_bos_token", adds_begin);
  config.set("add_eos_token", adds_end);
  if (const GgufValue* value = header.find("tokenizer.chat_template")) {
    if (!is_valid_utf8(value->as_string()))
      throw Error(ErrorKind::model, "the text is not UTF-8").at("'tokenizer.chat_template'");
    config.set("chat_template", value->as_string());
  }

  out.tokenizer = object({{"version", "1.0"}, {"truncation", {}}, {"padding", {}}});
  Value& t = out.tokenizer;
  t.set("added_tokens", std::move(added));
  t.set("normalizer", splitting.composes ? object({{"type", "NFC"}}) : Value());
  t.set("pre_tokenizer", pre_tokenizer(splitting));
  t.set("post_processor", post_processor(adds_begin ? begin : Token(), adds_end ? end : Token()));
  t.set("decoder", byte_level(true));
  Value model = object({{"type", "BPE"},
                        {"dropout", {}},
                        {"unk_token", {}},
                        {"continuing_subword_prefix", {}},
                        {"end_of_word_suffix", {}},
                        {"fuse_unk", false},
                        {"byte_fallback", false},
                        {"ignore_merges", splitting.whole_words}});
  model.set("vocab", std::move(ids));
  model.set("merges", merges_of(header));
  t.set("model", std::move(model));
  return out;
}

}  // namespace graft
