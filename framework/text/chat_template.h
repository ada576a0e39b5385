#pragma once

#include <span>
#include <string>
#include <string_view>

#include "graft/tokenizer.h"

namespace graft {

/// A chat template of the ChatML family: every turn is "<|im_start|>ROLE\nCONTENT<|im_end|>\n".
class ChatTemplate {
 public:
  /// Recognises a Jinja template by its shape; what it does with tools and tool calls is left out.
  /// Throws Error(model) for any other template.
  explicit ChatTemplate(std::string_view jinja);

  /// The turns, the template's own system turn before them when they have none, and if `asks` the
  /// opening of the assistant's turn. Throws Error(usage) for no turns and unknown roles.
  std::string render(std::span<const ChatMessage> messages, bool asks) const;

 private:
  std::string default_system_;  ///< the whole turn, or empty
  bool trims_ = false;          ///< content loses outer spaces
};

}  // namespace graft
