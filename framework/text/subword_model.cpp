#include "text/subword_model.h"

#include "text/component.h"

namespace graft {
namespace {

/// Files of early tokenizers name no type: the fields tell.
std::string model_type(const Value& value) {
  if (!value.is_object())
    throw Error(ErrorKind::model, "wrong type").expected("object").found(value.type_name());
  if (value.find("type")) return type_of(value);
  if (value.find("merges")) return "BPE";
  if (value.find("max_input_chars_per_word")) return "WordPiece";
  const Value* vocab = value.find("vocab");
  if (vocab && vocab->is_array()) return "Unigram";
  if (vocab && value.find("unk_token")) return "WordLevel";
  throw Error(ErrorKind::model, "the field 'type' is missing");
}

}  // namespace

std::unique_ptr<const SubwordModel> make_subword_model(Value& value) {
  try {
    const std::string type = model_type(value);
    if (type == "BPE") return make_bpe(value);
    if (type == "WordPiece") return make_wordpiece(value);
    if (type == "WordLevel") return make_wordlevel(value);
    if (type == "Unigram") return make_unigram(value);
    refuse_type("tokenizer model", type);
  } catch (Error& error) {
    error.at("model");
    throw;
  }
}

}  // namespace graft
