#include "text/chat_template.h"

#include <vector>

#include "graft/error.h"
#include "text/char_class.h"
#include "text/jinja_shape.h"
#include "text/utf8.h"

namespace graft {
namespace {

using Kind = JinjaStep::Kind;

constexpr std::string_view kStart = "<|im_start|>", kEnd = "<|im_end|>\n";
constexpr std::string_view kAnswer = "<|im_start|>assistant\n";

/// Goes through the steps of a template; every function says whether it found what it wants.
class Shape {
 public:
  explicit Shape(std::vector<JinjaStep> steps) : steps_(std::move(steps)) {}

  bool done() const { return at_ == steps_.size(); }
  bool take(Kind kind, std::string_view value) {
    if (done() || steps_[at_].kind != kind || steps_[at_].value != value) return false;
    ++at_;
    return true;
  }
  bool statement(std::string_view value) { return take(Kind::statement, value); }
  bool text(std::string_view value) { return take(Kind::text, value); }
  bool print(std::string_view value) { return take(Kind::print, value); }

  /// A whole system turn.
  bool system_turn(std::string& turn) {
    if (done() || steps_[at_].kind != Kind::text) return false;
    const std::string& value = steps_[at_].value;
    if (!value.starts_with("<|im_start|>system\n") || !value.ends_with(kEnd) ||
        value.find(kStart, 1) != std::string::npos)
      return false;
    turn = value;
    ++at_;
    return true;
  }

  /// Leaves out the rest of a branch: up to the statement `end` of this depth.
  bool skip_to(std::string_view end) {
    for (int depth = 0; !done(); ++at_) {
      if (steps_[at_].kind != Kind::statement) continue;
      const std::string& value = steps_[at_].value;
      if (depth == 0 && value == end) return ++at_, true;
      depth += value.starts_with("if ") || value.starts_with("for ");
      depth -= value == "endif" || value == "endfor";
      if (depth < 0) return false;
    }
    return false;
  }

  /// Tries `match` and goes back when it fails.
  template <class Match>
  bool maybe(Match match) {
    const std::size_t before = at_;
    if (match()) return true;
    at_ = before;
    return false;
  }

 private:
  std::vector<JinjaStep> steps_;
  std::size_t at_ = 0;
};

bool turn(Shape& shape, bool& trims) {
  if (!shape.text(kStart) || !shape.print("message.role") || !shape.text("\n")) return false;
  trims = shape.print("message.content|trim");
  return (trims || shape.print("message.content")) && shape.text(kEnd);
}

bool answer(Shape& shape) {
  return shape.statement("if add_generation_prompt") && shape.text(kAnswer) &&
         shape.statement("endif");
}

/// All turns alike in one loop, the default system turn inside it or none (SmolLM2, Qwen1.5).
bool plain(Shape& shape, std::string& system, bool& trims) {
  if (!shape.statement("for message in messages")) return false;
  shape.maybe([&] {
    return shape.statement("if loop.first and messages[0].role != 'system'") &&
           shape.system_turn(system) && shape.statement("endif");
  });
  return turn(shape, trims) && shape.statement("endfor") && answer(shape);
}

/// With tools as another branch, which a conversation without tools does not take (Qwen2.5).
bool with_tools(Shape& shape, std::string& system, bool& trims) {
  return shape.statement("if tools") && shape.skip_to("else") &&
         shape.statement("if messages[0].role == 'system'") && shape.text("<|im_start|>system\n") &&
         shape.print("messages[0].content") && shape.text(kEnd) && shape.statement("else") &&
         shape.system_turn(system) && shape.statement("endif") && shape.statement("endif") &&
         shape.statement("for message in messages") &&
         shape.statement(
             "if (message.role == 'user') or (message.role == 'system' and not "
             "loop.first) or (message.role == 'assistant' and not "
             "message.tool_calls)") &&
         turn(shape, trims) && shape.skip_to("endif") && shape.statement("endfor") && answer(shape);
}

/// As Python's str.strip, which Jinja calls.
std::string trimmed(std::string_view content) {
  std::string text = to_valid_utf8(content);
  const auto blank = [](char32_t c) { return is_space(c) || (c >= 0x1C && c <= 0x1F); };
  std::size_t begin = 0, end = text.size();
  for (std::size_t at = 0; at < end && blank(next_code_point(text, at));) begin = at;
  for (std::size_t at = end; at > begin && blank(previous_code_point(text, at));) end = at;
  return text.substr(begin, end - begin);
}

}  // namespace

ChatTemplate::ChatTemplate(std::string_view jinja) {
  Shape shape(jinja_steps(jinja));
  shape.maybe([&] {
    return shape.statement("if not add_generation_prompt is defined") &&
           shape.statement("set add_generation_prompt = false") && shape.statement("endif");
  });
  const bool known = shape.maybe([&] { return plain(shape, default_system_, trims_); }) ||
                     shape.maybe([&] { return with_tools(shape, default_system_, trims_); });
  if (!known || !shape.done())
    throw Error(ErrorKind::model,
                "the chat template is not one of the ChatML shapes that graft "
                "reads")
        .hint("write the whole prompt yourself with --prompt and leave out --chat");
}

std::string ChatTemplate::render(std::span<const ChatMessage> messages, bool asks) const {
  if (messages.empty()) throw Error(ErrorKind::usage, "a chat needs at least one message");
  std::string out;
  if (messages[0].role != "system") out += default_system_;
  for (const auto& [role, content] : messages) {
    if (role != "system" && role != "user" && role != "assistant")
      throw Error(ErrorKind::usage, "unknown role " + quote(role))
          .expected("system, user or assistant");
    const std::string body = trims_ ? trimmed(content) : content;
    out.append(kStart).append(role).append("\n").append(body).append(kEnd);
  }
  return asks ? out.append(kAnswer) : out;
}

}  // namespace graft
