#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>

#include "text/byte_trie.h"
#include "text/component.h"
#include "text/subword_model.h"
#include "text/utf8.h"

namespace graft {
namespace {

/// How far below the lowest score of the vocabulary an unknown character is.
constexpr double kUnknownPenalty = 10;

/// SentencePiece's unigram language model: the split with the highest sum of scores (Viterbi).
class Unigram : public SubwordModel {
 public:
  Unigram(Vocabulary vocabulary, ByteTrie trie, std::vector<double> scores,
          std::optional<TokenId> unknown, bool byte_fallback)
      : SubwordModel(std::move(vocabulary)),
        trie_(std::move(trie)),
        scores_(std::move(scores)),
        unknown_(unknown),
        byte_fallback_(byte_fallback) {
    double lowest = std::numeric_limits<double>::infinity();
    for (const double score : scores_) lowest = std::min(lowest, score);
    unknown_score_ = lowest - kUnknownPenalty;
    for (std::size_t byte = 0; byte < byte_tokens_.size(); ++byte) {
      char name[8];
      std::snprintf(name, sizeof(name), "<0x%02X>", static_cast<unsigned>(byte));
      byte_tokens_[byte] = this->vocabulary().id_of(name).value_or(-1);
    }
  }

  void encode(std::string_view piece, std::vector<TokenId>& out) const override {
    const std::vector<Node> best = best_paths(piece);
    struct Span {
      std::size_t begin, end;
    };
    std::vector<Span> spans;  // last first; neighbouring unknown characters are one
    bool joins = false;
    for (std::size_t end = piece.size(); end > 0;) {
      const Node& node = best[end];
      const bool unknown = unknown_ && node.id == *unknown_;
      if (unknown && joins)
        spans.back().begin = node.begin;
      else
        spans.push_back({node.begin, end});
      joins = unknown;
      end = node.begin;
    }
    for (auto span = spans.rbegin(); span != spans.rend(); ++span)
      append(piece.substr(span->begin, span->end - span->begin), out);
  }

 private:
  static constexpr std::size_t kUnset = static_cast<std::size_t>(-1);

  /// The best path that ends at a byte.
  struct Node {
    TokenId id = 0;
    double score = 0;
    std::size_t begin = kUnset;  ///< where its last token starts
  };

  std::vector<Node> best_paths(std::string_view piece) const {
    std::vector<Node> best(piece.size() + 1);
    for (std::size_t at = 0; at < piece.size();) {
      const double here = best[at].score;
      const std::size_t character = utf8_size(piece[at]);
      bool has_character = false;
      const auto offer = [&](std::size_t end, TokenId id, double score) {
        Node& node = best[end];
        if (node.begin == kUnset || score > node.score) node = {id, score, at};
      };
      trie_.prefixes(piece.substr(at), [&](std::size_t size, std::int32_t id) {
        offer(at + size, id, here + scores_[static_cast<std::size_t>(id)]);
        has_character |= size == character;
      });
      if (!has_character) {
        if (!unknown_) refuse(piece.substr(at, character));
        offer(at + character, *unknown_, here + unknown_score_);
      }
      at += character;
    }
    return best;
  }

  void append(std::string_view token, std::vector<TokenId>& out) const {
    if (const auto id = vocabulary().id_of(token)) return out.push_back(*id);
    const auto byte_token = [&](char c) { return byte_tokens_[static_cast<unsigned char>(c)]; };
    if (byte_fallback_ &&
        std::all_of(token.begin(), token.end(), [&](char c) { return byte_token(c) >= 0; })) {
      for (const char c : token) out.push_back(byte_token(c));
      return;
    }
    if (!unknown_) refuse(token);
    out.push_back(*unknown_);
  }

  [[noreturn]] static void refuse(std::string_view text) {
    throw Error(ErrorKind::model,
                "the vocabulary has neither " + quote(text) + " nor an unknown token");
  }

  ByteTrie trie_;
  std::vector<double> scores_;
  std::optional<TokenId> unknown_;
  bool byte_fallback_;
  double unknown_score_ = 0;
  std::array<TokenId, 256> byte_tokens_;
};

}  // namespace

std::unique_ptr<const SubwordModel> make_unigram(Value& value) {
  allow_fields(value, {"unk_id", "vocab", "byte_fallback"});
  auto& entries = value.at("vocab").as_array();
  const auto count = static_cast<std::int64_t>(entries.size());
  std::optional<TokenId> unknown;
  if (value.find("unk_id")) {
    const std::int64_t id = value.get_int("unk_id", 0);
    if (id < 0 || id >= count)
      refuse_field("unk_id", std::to_string(id), "an id below " + std::to_string(count));
    unknown = static_cast<TokenId>(id);
  }
  Vocabulary vocabulary;
  ByteTrie trie;
  std::vector<double> scores;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto& entry = entries[i].as_array();
    const auto id = static_cast<TokenId>(i);
    if (entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number())
      throw Error(ErrorKind::model, "wrong entry")
          .at("vocab[" + std::to_string(i) + "]")
          .expected("a token and its score");
    scores.push_back(entry[1].as_double());
    trie.add(entry[0].as_string(), id, true);
    vocabulary.add(entry[0].as_string(), id);
  }
  return std::make_unique<Unigram>(std::move(vocabulary), std::move(trie), std::move(scores),
                                   unknown, value.get_bool("byte_fallback", false));
}

}  // namespace graft
