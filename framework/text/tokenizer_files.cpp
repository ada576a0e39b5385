#include "text/tokenizer_files.h"

#include <charconv>
#include <map>

#include "checkpoint/input_file.h"
#include "text/component.h"

namespace graft {
namespace {

constexpr std::size_t kTemplateLimit = 1 << 20;

/// Runs `read` and adds `place` to an error it throws.
template <class Read>
auto at_place(std::string_view place, Read read) {
  try {
    return read();
  } catch (Error& error) {
    error.at(place);
    throw;
  }
}

void read_tokenizer_json(Value value, TokenizerFiles& out) {
  if (!value.is_object())
    throw Error(ErrorKind::model, "wrong type").expected("object").found(value.type_name());
  allow_fields(value, {"version", "truncation", "padding", "added_tokens", "normalizer",
                       "pre_tokenizer", "post_processor", "decoder", "model"});
  if (const std::string version = value.get_string("version", "1.0"); version != "1.0")
    refuse_field("version", version, "1.0");
  if (!value.find("model")) value.at("model");  // says that it is missing
  for (auto& [field, member] : value.as_object())
    if (field == "model") out.model = make_subword_model(member);
  out.normalizer = Normalizer(value.find("normalizer"));
  out.pre_tokenizer = PreTokenizer(value.find("pre_tokenizer"));
  out.post_processor = make_post_processor(value.find("post_processor"));
  out.decoder = Decoder(value.find("decoder"));
  if (const Value* list = value.find("added_tokens"))
    out.added.add_list(*list, out.model->vocabulary());
  for (const auto* ids : {&out.post_processor.before, &out.post_processor.behind})
    for (const TokenId id : *ids)
      if (!out.added.find(id) && !out.model->vocabulary().token(id))
        throw Error(ErrorKind::model, "the vocabulary has no id " + std::to_string(id))
            .at("post_processor");
}

/// "eos_token": "</s>" or {"content": "</s>", ...}; empty for anything else.
std::string token_text(const Value* value) {
  if (!value) return {};
  return value->is_string() ? value->as_string() : value->get_string("content", "");
}

/// Special tokens that only this file names. Those that the vocabulary does not have are left out:
/// the model has no row for them.
void read_special_tokens(const Value& config, TokenizerFiles& out) {
  const Vocabulary& vocabulary = out.model->vocabulary();
  if (const Value* table = config.find("added_tokens_decoder")) {
    std::map<std::int64_t, const Value*> by_id;
    for (const auto& [key, entry] : table->as_object()) {
      std::int64_t id = -1;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
      if (error != std::errc() || end != key.data() + key.size())
        throw Error(ErrorKind::model, "the key " + quote(key) + " is no id")
            .at("added_tokens_decoder");
      by_id.emplace(id, &entry);
    }
    Value::Array list;
    for (const auto& [id, entry] : by_id) {
      Value copy = *entry;
      if (out.added.find(copy.at("content").as_string())) continue;
      copy.set("id", id);
      list.push_back(std::move(copy));
    }
    out.added.add_list(Value(std::move(list)), vocabulary);
  }
  for (const char* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                           "cls_token", "mask_token"}) {
    AddedToken token;
    token.content = token_text(config.find(name));
    const auto id = vocabulary.id_of(token.content);
    if (!id || out.added.find(token.content)) continue;
    token.id = *id;
    token.special = true;
    token.normalized = false;
    out.added.add(std::move(token), vocabulary);
  }
  out.eos_token = token_text(config.find("eos_token"));
}

/// A string, or a list of named templates of which "default" counts.
std::string template_text(const Value& value) {
  if (value.is_string()) return value.as_string();
  for (const Value& entry : value.as_array())
    if (entry.get_string("name", "") == "default") return entry.at("template").as_string();
  return {};
}

}  // namespace

TokenizerFiles read_tokenizer_files(const std::filesystem::path& folder) {
  TokenizerFiles out;
  out.folder = folder;
  const auto main = folder / "tokenizer.json", config = folder / "tokenizer_config.json",
             jinja = folder / "chat_template.jinja";
  const auto is_there = [](const std::filesystem::path& path) {
    std::error_code ignored;
    return std::filesystem::exists(std::filesystem::symlink_status(path, ignored));
  };
  if (!is_there(main))
    throw Error(ErrorKind::model, "the folder has no tokenizer.json")
        .at(path_text(folder))
        .hint(is_there(folder / "tokenizer.model")
                  ? "tokenizer.model is not read; save the tokenizer with Transformers, which "
                    "writes tokenizer.json"
                  : "copy it from the original model");
  const JsonLimits limits;
  const auto load = [&](const std::filesystem::path& path) {
    return parse_json(InputFile(path).read_all(limits.bytes), limits);
  };
  at_place(path_text(main), [&] { read_tokenizer_json(load(main), out); });
  if (is_there(config))
    at_place(path_text(config), [&] {
      const Value value = load(config);
      read_special_tokens(value, out);
      if (const Value* chat = value.find("chat_template")) out.chat_template = template_text(*chat);
      out.chat_template_file = config;
    });
  if (is_there(jinja)) {
    out.chat_template = InputFile(jinja).read_all(kTemplateLimit);
    out.chat_template_file = jinja;
  }
  at_place(path_text(main), [&] { out.added.finish(out.normalizer); });
  return out;
}

}  // namespace graft
