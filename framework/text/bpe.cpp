#include <algorithm>
#include <array>
#include <cstdio>
#include <optional>

#include "text/component.h"
#include "text/flat_map.h"
#include "text/subword_model.h"
#include "text/utf8.h"

namespace graft {
namespace {

/// Longer pieces are merged with a heap; below it, looking at every pair again is faster.
constexpr std::size_t kScanLimit = 24;

struct Merge {
  std::int32_t rank = 0;
  TokenId result = 0;
};

struct Settings {
  std::optional<TokenId> unknown;
  std::string continuing_prefix, end_suffix;
  bool fuse_unknown = false, byte_fallback = false, ignore_merges = false;
  std::array<TokenId, 256> byte_tokens{};  ///< of "<0x00>" to "<0xFF>", -1 where there is none
};

/// Byte pair encoding: the pair with the lowest rank is merged first, the leftmost of equals.
class Bpe : public SubwordModel {
 public:
  Bpe(Vocabulary vocabulary, FlatMap<Merge> merges, Settings settings)
      : SubwordModel(std::move(vocabulary)),
        merges_(std::move(merges)),
        settings_(std::move(settings)) {
    low_.fill(-1);
    for (char32_t c = 1; c < low_.size(); ++c) {
      std::string text;
      append_utf8(text, c);
      low_[c] = this->vocabulary().id_of(text).value_or(-1);
    }
  }

  void encode(std::string_view piece, std::vector<TokenId>& out) const override {
    if (settings_.ignore_merges)
      if (const auto whole = vocabulary().id_of(piece)) return out.push_back(*whole);
    const std::size_t begin = out.size();
    append_symbols(piece, out);
    const std::size_t count = out.size() - begin;
    if (count < 2) return;
    const std::size_t left = count <= kScanLimit ? merge_by_scan(out.data() + begin, count)
                                                 : merge_by_heap(out.data() + begin, count);
    out.resize(begin + left);
  }

 private:
  const Merge* merge_of(TokenId a, TokenId b) const {
    return merges_.find(static_cast<std::uint64_t>(static_cast<std::uint32_t>(a)) << 32 |
                        static_cast<std::uint32_t>(b));
  }

  /// One token per character, where the vocabulary has it.
  void append_symbols(std::string_view piece, std::vector<TokenId>& out) const {
    const bool plain = settings_.continuing_prefix.empty() && settings_.end_suffix.empty();
    bool unknown_waits = false;
    std::string decorated;
    for (std::size_t at = 0; at < piece.size();) {
      const std::size_t begin = at;
      const char32_t c = next_code_point(piece, at);
      std::string_view symbol = piece.substr(begin, at - begin);
      if (!plain) {
        decorated = begin > 0 ? settings_.continuing_prefix : std::string();
        decorated += symbol;
        if (at == piece.size()) decorated += settings_.end_suffix;
        symbol = decorated;
      }
      const TokenId id = plain && c < low_.size() && low_[c] >= 0
                             ? low_[c]
                             : vocabulary().id_of(symbol).value_or(-1);
      if (id >= 0) {
        if (unknown_waits) out.push_back(*settings_.unknown);
        unknown_waits = false;
        out.push_back(id);
      } else if (!(settings_.byte_fallback && append_bytes(symbol, out)) && settings_.unknown) {
        if (unknown_waits && !settings_.fuse_unknown) out.push_back(*settings_.unknown);
        unknown_waits = true;
      }
    }
    if (unknown_waits) out.push_back(*settings_.unknown);
  }

  bool append_bytes(std::string_view symbol, std::vector<TokenId>& out) const {
    for (const char c : symbol)
      if (settings_.byte_tokens[static_cast<unsigned char>(c)] < 0) return false;
    for (const char c : symbol) out.push_back(settings_.byte_tokens[static_cast<unsigned char>(c)]);
    return true;
  }

  /// Both merge `symbols` in place and return how many are left.
  std::size_t merge_by_scan(TokenId* symbols, std::size_t count) const {
    std::array<const Merge*, kScanLimit> merges;
    for (std::size_t i = 0; i + 1 < count; ++i) merges[i] = merge_of(symbols[i], symbols[i + 1]);
    while (count > 1) {
      std::size_t best = count;
      for (std::size_t i = 0; i + 1 < count; ++i)
        if (merges[i] && (best == count || merges[i]->rank < merges[best]->rank)) best = i;
      if (best == count) break;
      symbols[best] = merges[best]->result;
      std::copy(symbols + best + 2, symbols + count, symbols + best + 1);
      std::copy(merges.begin() + best + 1, merges.begin() + count - 1, merges.begin() + best);
      --count;
      if (best > 0) merges[best - 1] = merge_of(symbols[best - 1], symbols[best]);
      if (best + 1 < count) merges[best] = merge_of(symbols[best], symbols[best + 1]);
    }
    return count;
  }

  std::size_t merge_by_heap(TokenId* symbols, std::size_t count) const {
    struct Candidate {
      std::int32_t rank;
      TokenId result;
      std::size_t left, right;
      bool operator<(const Candidate& other) const {  // the top of the heap is the largest
        return rank != other.rank ? rank > other.rank : left > other.left;
      }
    };
    constexpr std::size_t kNone = static_cast<std::size_t>(-1);
    std::vector<std::size_t> next(count), previous(count);
    std::vector<Candidate> heap;
    const auto candidate = [&](std::size_t left, std::size_t right) -> std::optional<Candidate> {
      const Merge* merge = merge_of(symbols[left], symbols[right]);
      if (!merge) return std::nullopt;
      return Candidate{merge->rank, merge->result, left, right};
    };
    for (std::size_t i = 0; i < count; ++i) {
      previous[i] = i ? i - 1 : kNone;
      next[i] = i + 1 < count ? i + 1 : kNone;
      if (i + 1 < count)
        if (const auto made = candidate(i, i + 1)) heap.push_back(*made);
    }
    std::make_heap(heap.begin(), heap.end());
    const auto push = [&](std::size_t left, std::size_t right) {
      if (left == kNone || right == kNone) return;
      if (const auto made = candidate(left, right)) {
        heap.push_back(*made);
        std::push_heap(heap.begin(), heap.end());
      }
    };
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end());
      const Candidate top = heap.back();
      heap.pop_back();
      // Stale when one of the two symbols has been merged with another since.
      if (symbols[top.left] < 0 || next[top.left] != top.right) continue;
      const Merge* merge = merge_of(symbols[top.left], symbols[top.right]);
      if (!merge || merge->rank != top.rank) continue;
      symbols[top.left] = top.result;
      symbols[top.right] = -1;
      next[top.left] = next[top.right];
      if (next[top.left] != kNone) previous[next[top.left]] = top.left;
      push(previous[top.left], top.left);
      push(top.left, next[top.left]);
    }
    return static_cast<std::size_t>(std::remove(symbols, symbols + count, -1) - symbols);
  }

  FlatMap<Merge> merges_;
  Settings settings_;
  std::array<TokenId, 0x250> low_;  ///< token of a character below U+0250, -1 where there is none
};

/// The two halves of entry `value`: "a b" or ["a", "b"].
std::pair<std::string_view, std::string_view> halves(const Value& value) {
  if (value.is_array()) {
    const auto& pair = value.as_array();
    if (pair.size() == 2) return {pair[0].as_string(), pair[1].as_string()};
  } else {
    const std::string_view text = value.as_string();
    const std::size_t space = text.find(' ');
    if (space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos)
      return {text.substr(0, space), text.substr(space + 1)};
  }
  throw Error(ErrorKind::model, "wrong merge").expected("two tokens");
}

FlatMap<Merge> read_merges(const Value::Array& merges, const Vocabulary& vocabulary,
                           std::string_view continuing_prefix) {
  FlatMap<Merge> out;
  out.reserve(merges.size());
  std::string joined;
  std::int32_t rank = 0;
  const auto id_of = [&](std::string_view token) {
    const auto id = vocabulary.id_of(token);
    if (!id)
      throw Error(ErrorKind::model, "the vocabulary does not have the token " + quote(token));
    return *id;
  };
  for (std::size_t i = 0; i < merges.size(); ++i) {
    try {
      if (merges[i].is_string() && merges[i].as_string().starts_with("#version")) continue;
      const auto [a, b] = halves(merges[i]);
      joined = a;
      if (b.size() < continuing_prefix.size())
        throw Error(ErrorKind::model, "the second token is shorter than the prefix");
      joined += b.substr(continuing_prefix.size());
      const auto key =
          static_cast<std::uint64_t>(id_of(a)) << 32 | static_cast<std::uint32_t>(id_of(b));
      out[key] = {rank++, id_of(joined)};
    } catch (Error& error) {
      error.at("merges[" + std::to_string(i) + "]");
      throw;
    }
  }
  return out;
}

}  // namespace

std::unique_ptr<const SubwordModel> make_bpe(Value& value) {
  allow_fields(value, {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                       "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  if (value.get_double("dropout", 0) != 0)
    throw Error(ErrorKind::model, "a tokenizer with dropout splits at random")
        .hint("set 'dropout' to null");
  Settings settings;
  settings.continuing_prefix = value.get_string("continuing_subword_prefix", "");
  settings.end_suffix = value.get_string("end_of_word_suffix", "");
  settings.fuse_unknown = value.get_bool("fuse_unk", false);
  settings.byte_fallback = value.get_bool("byte_fallback", false);
  settings.ignore_merges = value.get_bool("ignore_merges", false);
  Vocabulary vocabulary = Vocabulary::from_object(value.at("vocab"));
  if (const Value* unknown = value.find("unk_token")) {
    settings.unknown = vocabulary.id_of(unknown->as_string());
    if (!settings.unknown)
      throw Error(ErrorKind::model,
                  "the vocabulary does not have the unknown token " + quote(unknown->as_string()));
  }
  for (std::size_t byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", static_cast<unsigned>(byte));
    settings.byte_tokens[byte] = vocabulary.id_of(name).value_or(-1);
  }
  FlatMap<Merge> merges =
      read_merges(value.at("merges").as_array(), vocabulary, settings.continuing_prefix);
  return std::make_unique<Bpe>(std::move(vocabulary), std::move(merges), std::move(settings));
}

}  // namespace graft
