#include "text/decoder.h"

#include <algorithm>
#include <utility>

#include "text/byte_level.h"
#include "text/component.h"
#include "text/metaspace.h"
#include "text/pattern.h"
#include "text/utf8.h"

namespace graft {
namespace {

using Tokens = std::vector<std::string>;

std::string join(const Tokens& tokens, std::string_view between = "") {
  std::string out;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (i) out += between;
    out += tokens[i];
  }
  return out;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (from.empty() || text.find(from) == std::string::npos) return;
  std::string out;
  std::size_t done = 0;
  for (std::size_t at; (at = text.find(from, done)) != std::string::npos; done = at + from.size()) {
    out.append(text, done, at - done);
    out += to;
  }
  out.append(text, done);
  text = std::move(out);
}

/// Spaces that English does not have before marks and contractions.
void clean_up(std::string& text) {
  static constexpr std::pair<const char*, const char*> kRules[] = {
      {" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
      {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
      {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kRules) replace_all(text, from, to);
}

void decode_byte_level(Tokens& tokens) {
  std::string bytes;
  for (const std::string& token : tokens) {
    const std::size_t begin = bytes.size();
    for (std::size_t at = 0; at < token.size();) {
      const int byte = byte_of_character(next_code_point(token, at));
      if (byte < 0) {  // an added token, say, stands for itself as a whole
        bytes.resize(begin);
        bytes += token;
        break;
      }
      bytes += static_cast<char>(byte);
    }
  }
  tokens = {to_valid_utf8(bytes)};
}

/// The byte of "<0x41>", or -1.
int named_byte(const std::string& token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int byte = 0;
  for (int i = 3; i < 5; ++i) {
    const char c = token[static_cast<std::size_t>(i)];
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    byte = byte * 16 + digit;
  }
  return byte;
}

void decode_byte_fallback(Tokens& tokens) {
  Tokens out;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (is_valid_utf8(bytes)) {
      out.push_back(bytes);
    } else {
      for (std::size_t i = 0; i < bytes.size(); ++i) out.emplace_back("\xEF\xBF\xBD");
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    if (const int byte = named_byte(token); byte >= 0) {
      bytes += static_cast<char>(byte);
      continue;
    }
    flush();
    out.push_back(std::move(token));
  }
  flush();
  tokens = std::move(out);
}

void decode_wordpiece(Tokens& tokens, const std::string& prefix, bool cleanup) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (i && tokens[i].starts_with(prefix))
      tokens[i].erase(0, prefix.size());
    else if (i)
      tokens[i].insert(0, " ");
    if (cleanup) clean_up(tokens[i]);
  }
}

void decode_metaspace(Tokens& tokens, const Metaspace& metaspace) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const bool dropped = i == 0 && metaspace.prepend != Metaspace::Prepend::never;
    replace_all(tokens[i], metaspace.replacement, dropped ? "" : " ");
  }
}

void decode_ctc(Tokens& tokens, const std::string& pad, const std::string& delimiter,
                bool cleanup) {
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  for (std::string& token : tokens) {
    replace_all(token, pad, "");
    if (!cleanup) continue;
    clean_up(token);
    replace_all(token, delimiter, " ");
  }
  std::erase(tokens, "");
}

/// Removes at most `start` of the character from the start and `stop` from the end of a token.
void strip(std::string& token, const std::string& character, std::int64_t start,
           std::int64_t stop) {
  std::size_t begin = 0, end = token.size();
  const std::size_t size = character.size();
  for (; start > 0 && token.compare(begin, size, character) == 0 && begin + size <= end; --start)
    begin += size;
  for (; stop > 0 && end >= begin + size && token.compare(end - size, size, character) == 0; --stop)
    end -= size;
  token = token.substr(begin, end - begin);
}

using Step = std::function<void(Tokens&)>;

Step make_strip(const Value& value) {
  allow_fields(value, {"content", "start", "stop"});
  std::string character;
  append_utf8(character, get_character(value, "content"));
  const std::int64_t start = value.get_int("start", 0), stop = value.get_int("stop", 0);
  if (start < 0) refuse_field("start", std::to_string(start), "0 or more");
  if (stop < 0) refuse_field("stop", std::to_string(stop), "0 or more");
  return [character, start, stop](Tokens& tokens) {
    for (std::string& token : tokens) strip(token, character, start, stop);
  };
}

Step make_step(const Value& value) {
  const std::string& type = type_of(value);
  if (type == "Strip") return make_strip(value);
  if (type == "ByteLevel") {
    allow_fields(value, {"add_prefix_space", "trim_offsets", "use_regex"});
    return decode_byte_level;
  }
  if (type == "WordPiece") {
    allow_fields(value, {"prefix", "cleanup"});
    return [prefix = value.get_string("prefix", "##"), cleanup = value.get_bool("cleanup", true)](
               Tokens& tokens) { decode_wordpiece(tokens, prefix, cleanup); };
  }
  if (type == "Metaspace")
    return [metaspace = Metaspace(value)](Tokens& tokens) { decode_metaspace(tokens, metaspace); };
  if (type == "BPEDecoder") {
    allow_fields(value, {"suffix"});
    return [suffix = value.get_string("suffix", "</w>")](Tokens& tokens) {
      for (std::size_t i = 0; i < tokens.size(); ++i)
        replace_all(tokens[i], suffix, i + 1 == tokens.size() ? "" : " ");
    };
  }
  if (type == "CTC") {
    allow_fields(value, {"pad_token", "word_delimiter_token", "cleanup"});
    return [pad = value.get_string("pad_token", "<pad>"),
            delimiter = value.get_string("word_delimiter_token", "|"),
            cleanup = value.get_bool("cleanup", true)](Tokens& tokens) {
      decode_ctc(tokens, pad, delimiter, cleanup);
    };
  }
  if (type == "Replace") {
    allow_fields(value, {"pattern", "content"});
    return [pattern = make_pattern(value.at("pattern")),
            content = value.at("content").as_string()](Tokens& tokens) {
      for (std::string& token : tokens) token = replace_matches(token, pattern, content);
    };
  }
  allow_fields(value, {});
  if (type == "ByteFallback") return decode_byte_fallback;
  if (type == "Fuse") return [](Tokens& tokens) { tokens = {join(tokens)}; };
  refuse_type("decoder", type);
}

}  // namespace

Decoder::Decoder(const Value* value) : given_(value != nullptr) {
  for (const Value* step : flatten(value, "decoders"))
    in_component("decoder", *step, [&] { steps_.push_back(make_step(*step)); });
}

std::string Decoder::apply(std::vector<std::string> tokens) const {
  if (!given_) return join(tokens, " ");
  for (const auto& step : steps_) step(tokens);
  return join(tokens);
}

}  // namespace graft
