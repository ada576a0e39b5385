#include "text/pre_tokenizer.h"

#include "text/byte_level.h"
#include "text/char_class.h"
#include "text/component.h"
#include "text/metaspace.h"
#include "text/splitting.h"
#include "text/utf8.h"

namespace graft {
namespace {

using Step = std::function<void(Pieces&)>;

/// How GPT-2 cuts text.
constexpr const char* kByteLevelSplit =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// Rewrites every piece: `rewrite(out, piece text, piece)` appends its new text.
template <class Rewrite>
void rewrite_pieces(Pieces& pieces, Rewrite rewrite) {
  std::string out;
  out.reserve(pieces.text.size() + pieces.text.size() / 2);
  for (auto& piece : pieces.pieces) {
    const std::size_t begin = out.size();
    rewrite(out, pieces.view(piece), piece.at_start);
    piece.begin = begin;
    piece.end = out.size();
  }
  pieces.text = std::move(out);
}

Step splitting(Pattern pattern, SplitBehavior behavior, bool invert = false) {
  return [pattern = std::move(pattern), behavior, invert](Pieces& pieces) {
    split_pieces(pieces, pattern, behavior, invert);
  };
}

void add_byte_level(const Value& value, std::vector<Step>& steps) {
  allow_fields(value, {"add_prefix_space", "trim_offsets", "use_regex"});
  if (value.get_bool("add_prefix_space", true))
    steps.push_back([](Pieces& pieces) {
      rewrite_pieces(pieces, [](std::string& out, std::string_view text, bool) {
        if (!text.starts_with(' ')) out += ' ';
        out += text;
      });
    });
  if (value.get_bool("use_regex", true))
    steps.push_back(splitting(make_pattern(Value(Value::Object{{"Regex", kByteLevelSplit}})),
                              SplitBehavior::isolated));
  steps.push_back([](Pieces& pieces) {
    rewrite_pieces(pieces, [](std::string& out, std::string_view text, bool) {
      append_byte_characters(out, text);
    });
  });
}

void add_metaspace(const Value& value, std::vector<Step>& steps) {
  const Metaspace metaspace(value);
  steps.push_back([metaspace](Pieces& pieces) {
    rewrite_pieces(pieces, [&](std::string& out, std::string_view text, bool at_start) {
      const bool wanted = metaspace.prepend == Metaspace::Prepend::always ||
                          (metaspace.prepend == Metaspace::Prepend::first && at_start);
      if (wanted && !text.starts_with(metaspace.replacement) && !text.starts_with(' '))
        out += metaspace.replacement;
      for (const char c : text) {
        if (c == ' ')
          out += metaspace.replacement;
        else
          out += c;
      }
    });
  });
  if (metaspace.split)
    steps.push_back(splitting(make_pattern(Value(Value::Object{{"String", metaspace.replacement}})),
                              SplitBehavior::merged_with_next));
}

/// Runs of word characters, and runs of what is neither that nor space.
void cut_words(std::string_view text, const OnMatch& on_match) {
  const auto kind = [](char32_t c) { return is_word(c) ? 1 : is_space(c) ? 0 : 2; };
  std::size_t begin = 0;
  int running = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t here = at;
    const int now = kind(next_code_point(text, at));
    if (now == running) continue;
    if (running) on_match(begin, here);
    begin = here;
    running = now;
  }
  if (running) on_match(begin, text.size());
}

/// Runs of one script. As in Hugging Face tokenizers, what stands before the first character that
/// has a script is dropped.
void cut_scripts(std::string_view text, const OnMatch& on_match) {
  std::size_t begin = text.size();
  std::int32_t last = -1;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t here = at;
    const std::int32_t script = script_of(next_code_point(text, at));
    if (script < 0 || script == last) continue;
    if (last >= 0) on_match(begin, here);
    begin = here;
    last = script;
  }
  if (last >= 0) on_match(begin, text.size());
}

void add_fixed_length(const Value& value, std::vector<Step>& steps) {
  allow_fields(value, {"length"});
  const std::int64_t length = value.get_int("length", 5);
  if (length <= 0) refuse_field("length", std::to_string(length), "a positive number");
  const auto cut = [length](std::string_view text, const OnMatch& on_match) {
    std::size_t begin = 0;
    std::int64_t count = 0;
    for (std::size_t at = 0; at < text.size();) {
      at += utf8_size(text[at]);
      if (++count % length && at < text.size()) continue;
      on_match(begin, at);
      begin = at;
    }
  };
  steps.push_back(splitting(cut, SplitBehavior::isolated));
}

void add_step(const Value& value, std::vector<Step>& steps) {
  const std::string& type = type_of(value);
  if (type == "ByteLevel") return add_byte_level(value, steps);
  if (type == "Metaspace") return add_metaspace(value, steps);
  if (type == "FixedLength") return add_fixed_length(value, steps);
  if (type == "Split") {
    allow_fields(value, {"pattern", "behavior", "invert"});
    steps.push_back(splitting(make_pattern(value.at("pattern")),
                              split_behavior(value.at("behavior").as_string()),
                              value.get_bool("invert", false)));
  } else if (type == "Digits") {
    allow_fields(value, {"individual_digits"});
    steps.push_back(
        splitting(character_pattern(is_number), value.get_bool("individual_digits", false)
                                                    ? SplitBehavior::isolated
                                                    : SplitBehavior::contiguous));
  } else if (type == "Punctuation") {
    allow_fields(value, {"behavior"});
    steps.push_back(splitting(character_pattern(is_punctuation),
                              split_behavior(value.get_string("behavior", "Isolated"))));
  } else if (type == "CharDelimiterSplit") {
    allow_fields(value, {"delimiter"});
    const char32_t delimiter = get_character(value, "delimiter");
    steps.push_back(splitting(character_pattern([delimiter](char32_t c) { return c == delimiter; }),
                              SplitBehavior::removed));
  } else {
    allow_fields(value, {});
    if (type == "BertPreTokenizer") {
      steps.push_back(splitting(character_pattern(is_space), SplitBehavior::removed));
      steps.push_back(splitting(character_pattern(is_punctuation), SplitBehavior::isolated));
    } else if (type == "WhitespaceSplit") {
      steps.push_back(splitting(character_pattern(is_space), SplitBehavior::removed));
    } else if (type == "Whitespace") {
      steps.push_back(splitting(cut_words, SplitBehavior::removed, true));
    } else if (type == "UnicodeScripts") {
      steps.push_back(splitting(cut_scripts, SplitBehavior::removed, true));
    } else {
      refuse_type("pre-tokenizer", type);
    }
  }
}

}  // namespace

PreTokenizer::PreTokenizer(const Value* value) {
  for (const Value* step : flatten(value, "pretokenizers"))
    in_component("pre-tokenizer", *step, [&] { add_step(*step, steps_); });
}

void PreTokenizer::apply(Pieces& pieces) const {
  for (const auto& step : steps_) step(pieces);
}

}  // namespace graft
