#include "graft/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <new>

namespace graft {
namespace {

constexpr std::uint32_t kMatchLimit = 100'000;
constexpr std::uint32_t kDepthLimit = 1'000;

std::string text_of(int code) {
  PCRE2_UCHAR message[160] = {};
  pcre2_get_error_message(code, message, sizeof(message));
  return reinterpret_cast<const char*>(message);
}

}  // namespace

Regex::Regex(std::string pattern, ErrorKind blame) : pattern_(std::move(pattern)), blame_(blame) {
  int code = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* compiled =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern_.data()), pattern_.size(),
                    PCRE2_UTF | PCRE2_UCP, &code, &offset, nullptr);
  if (!compiled) {
    if (code == PCRE2_ERROR_HEAP_FAILED) throw std::bad_alloc();  // no mistake in the pattern
    throw Error(blame_, "the regular expression " + quote(pattern_) +
                            " is not valid at character " + std::to_string(offset) + ": " +
                            text_of(code))
        .hint("correct it where it is written");
  }
  code_ = std::shared_ptr<const void>(compiled, [](const void* p) {
    pcre2_code_free(const_cast<pcre2_code*>(static_cast<const pcre2_code*>(p)));
  });
}

std::optional<std::size_t> Regex::match_start(std::string_view text, bool whole) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free);
  const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> limits(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  if (!data || !limits) throw std::bad_alloc();
  pcre2_set_match_limit(limits.get(), kMatchLimit);
  pcre2_set_depth_limit(limits.get(), kDepthLimit);
  const int result =
      pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0,
                  PCRE2_ANCHORED | (whole ? PCRE2_ENDANCHORED : 0u), data.get(), limits.get());
  if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (result == PCRE2_ERROR_NOMEMORY) throw std::bad_alloc();
  if (result == PCRE2_ERROR_MATCHLIMIT || result == PCRE2_ERROR_DEPTHLIMIT ||
      result == PCRE2_ERROR_HEAPLIMIT)
    throw Error(blame_,
                "the regular expression " + quote(pattern_) + " takes too long on " + quote(text))
        .hint("write it without nested repetition");
  if (result < 0)
    throw Error(blame_, "the regular expression " + quote(pattern_) + " cannot be matched with " +
                            quote(text) + ": " + text_of(result));
  return pcre2_get_ovector_pointer(data.get())[1];
}

}  // namespace graft
