#pragma once

#include <cstdint>
#include <string_view>

#include "text/flat_map.h"

namespace graft {

/// Finds which of many words a text starts with. Every word has a number from 0 on.
class ByteTrie {
 public:
  /// A word that is there already keeps its number unless `replace`.
  void add(std::string_view word, std::int32_t number, bool replace) {
    std::uint32_t node = 0;
    for (const char c : word) {
      std::uint32_t& next = edges_[key(node, c)];
      if (next == 0) {
        next = static_cast<std::uint32_t>(ends_.size());
        ends_.push_back(-1);
      }
      node = next;
    }
    if (ends_[node] < 0 || replace) ends_[node] = number;
  }

  /// Calls `found(length, number)` for every word at the start of `text`, shortest first.
  template <class Found>
  void prefixes(std::string_view text, Found found) const {
    std::uint32_t node = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
      const std::uint32_t* next = edges_.find(key(node, text[i]));
      if (!next) return;
      node = *next;
      if (ends_[node] >= 0) found(i + 1, ends_[node]);
    }
  }

 private:
  static std::uint64_t key(std::uint32_t node, char c) {
    return std::uint64_t{node} << 8 | static_cast<unsigned char>(c);
  }

  FlatMap<std::uint32_t> edges_;  ///< (node, byte) to node
  std::vector<std::int32_t> ends_{-1};
};

}  // namespace graft
