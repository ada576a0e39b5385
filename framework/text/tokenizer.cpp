#include "graft/tokenizer.h"

#include <algorithm>
#include <array>
#include <unordered_map>
#include <utility>

#include "checkpoint/input_file.h"
#include "graft/error.h"
#include "text/chat_template.h"
#include "text/tokenizer_files.h"
#include "text/utf8.h"

namespace graft {
namespace {

/// ICU counts in 32 bits, and normalized text can be several times longer.
constexpr std::size_t kTextLimit = 256u << 20;

/// Ids of pieces that occurred before in the same text; most words of a text do.
class PieceCache {
 public:
  PieceCache(const SubwordModel& model, std::vector<TokenId>& ids) : model_(model), ids_(ids) {}

  void encode(std::string_view piece) {
    if (piece.size() > kLongestPiece) return model_.encode(piece, ids_);
    if (const auto known = ranges_.find(piece); known != ranges_.end()) {
      const auto [begin, count] = known->second;
      for (std::size_t i = 0; i < count; ++i) {
        const TokenId id = ids_[begin + i];
        ids_.push_back(id);
      }
      return;
    }
    const std::size_t begin = ids_.size();
    model_.encode(piece, ids_);
    if (ranges_.size() < kEntries)
      ranges_.emplace(std::string(piece), std::pair(begin, ids_.size() - begin));
  }

 private:
  static constexpr std::size_t kLongestPiece = 64, kEntries = 1 << 16;

  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const {
      return std::hash<std::string_view>()(text);
    }
  };

  const SubwordModel& model_;
  std::vector<TokenId>& ids_;
  /// Where in ids_ the ids of a piece stand.
  std::unordered_map<std::string, std::pair<std::size_t, std::size_t>, Hash, std::equal_to<>>
      ranges_;
};

}  // namespace

struct Tokenizer::State : TokenizerFiles {};

Tokenizer Tokenizer::open(const std::filesystem::path& folder) {
  auto state = std::make_shared<State>();
  static_cast<TokenizerFiles&>(*state) = read_tokenizer_files(folder);
  Tokenizer out;
  out.state_ = std::move(state);
  return out;
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  if (text.size() > kTextLimit)
    throw Error(ErrorKind::usage, "the text is too long for one call")
        .expected("at most " + std::to_string(kTextLimit) + " bytes")
        .found(std::to_string(text.size()));
  std::string repaired;
  if (!is_valid_utf8(text)) text = repaired = to_valid_utf8(text);

  const State& state = *state_;
  std::vector<TokenId> ids;
  PieceCache cache(*state.model, ids);
  const auto add_token = [&](TokenId id) { ids.push_back(id); };
  state.added.split(
      text, false,
      [&](std::string_view raw) {
        std::string normalized(raw);
        state.normalizer.apply(normalized);
        const bool first = raw.data() == text.data();
        state.added.split(
            normalized, true,
            [&](std::string_view part) {
              Pieces pieces{std::string(part), {}};
              pieces.pieces.push_back({0, part.size(), first && part.data() == normalized.data()});
              state.pre_tokenizer.apply(pieces);
              for (const auto& piece : pieces.pieces) cache.encode(pieces.view(piece));
            },
            add_token);
      },
      add_token);

  std::vector<std::int64_t> out;
  const auto& [before, behind] = state.post_processor;
  out.reserve(ids.size() + before.size() + behind.size());
  if (add_special_tokens) out.assign(before.begin(), before.end());
  out.insert(out.end(), ids.begin(), ids.end());
  if (add_special_tokens) out.insert(out.end(), behind.begin(), behind.end());
  return out;
}

std::string Tokenizer::decode(std::span<const std::int64_t> ids, bool skip_special_tokens) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const std::int64_t id : ids) {
    const AddedToken* added = state_->added.find(id);
    if (skip_special_tokens && is_special(id)) continue;
    const std::string* token = added ? &added->decoded : state_->model->vocabulary().token(id);
    if (!token)
      throw Error(ErrorKind::usage, "the vocabulary has no id " + std::to_string(id))
          .expected("0 to " + std::to_string(static_cast<std::int64_t>(size()) - 1));
    tokens.push_back(*token);
  }
  return state_->decoder.apply(std::move(tokens));
}

std::size_t Tokenizer::size() const {
  return state_->model->vocabulary().size() + state_->added.new_count();
}

std::optional<std::int64_t> Tokenizer::id_of(std::string_view token) const {
  if (const AddedToken* added = state_->added.find(token)) return added->id;
  return state_->model->vocabulary().id_of(token);
}

bool Tokenizer::is_special(std::int64_t id) const {
  const AddedToken* added = state_->added.find(id);
  // Hugging Face tokenizers recognises special tokens by their text, so one that normalization
  // changes is none when it decodes.
  return added && added->special && added->decoded == added->content;
}

std::optional<std::int64_t> Tokenizer::eos_id() const {
  return state_->eos_token.empty() ? std::nullopt : id_of(state_->eos_token);
}

std::string Tokenizer::chat_prompt(std::span<const ChatMessage> messages) const {
  return in_chat_format(messages, /*asks=*/true);
}

std::string Tokenizer::chat_text(std::span<const ChatMessage> messages) const {
  return in_chat_format(messages, /*asks=*/false);
}

std::string Tokenizer::in_chat_format(std::span<const ChatMessage> messages, bool asks) const {
  if (state_->chat_template.empty())
    throw Error(ErrorKind::model, "this model has no chat template")
        .at(path_text(state_->folder))
        .hint(asks ? "write the whole prompt yourself with --prompt and leave out --chat"
                   : "give the whole text, in a field \"text\" in place of \"messages\"");
  try {
    return ChatTemplate(state_->chat_template).render(messages, asks);
  } catch (Error& error) {
    if (error.kind() == ErrorKind::model) error.at(path_text(state_->chat_template_file));
    throw;
  }
}

}  // namespace graft
