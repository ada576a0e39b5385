#include "json_mutator.h"

#include <array>
#include <limits>
#include <utility>
#include <vector>

#include "graft/error.h"
#include "graft/value.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace graft::fuzz {
namespace {

constexpr std::size_t kMostMutations = 3;

/// Stands in for text that a Value cannot hold.
constexpr std::string_view kRaw = "@raw:";
const std::array<std::string, 11> kRawTexts{"1e400",
                                            "-1e400",
                                            "-0",
                                            "18446744073709551615",
                                            "18446744073709551616",
                                            "1e2",
                                            "NaN",
                                            "08",
                                            std::string(100, '[') + std::string(100, ']'),
                                            "\"\\ud800\"",
                                            "1,"};

std::string raw(std::size_t i) { return std::string(kRaw) + std::to_string(i) + "@"; }

std::vector<Value> poisons() {
  std::vector<Value> out{{},   true, false, Value(Value::Array{}), Value(Value::Object{}), 0,   1,
                         -1,   2,    3,     5,                     63,                     255, 256,
                         65536, 0.5, -0.5,  1e-310,                1e308};
  for (const int bits : {31, 32, 33, 53, 62})
    for (const int near : {-1, 0, 1}) out.push_back((std::int64_t{1} << bits) + near);
  out.push_back(std::numeric_limits<std::int64_t>::max());
  out.push_back(std::numeric_limits<std::int64_t>::min());
  for (const char* text :
       {"", " ", ".", "..", "../../x", "/etc/passwd", "\x1b[31m", "a\nb", "null", "true", "4",
        "(a+)+$", "(", "*", "re:(a|a)*b", "\xff", "\xc2\x80", "__metadata__", "F32", "F4", "U64"})
    out.push_back(text);
  out.push_back(std::string("a\0b", 3));
  out.push_back(std::string(300, 'a'));
  for (std::size_t i = 0; i < kRawTexts.size(); ++i) out.push_back(raw(i));
  return out;
}

/// Puts the texts in place of what stands in for them.
std::string with_raw_texts(std::string text) {
  for (std::size_t i = 0; i < kRawTexts.size(); ++i) {
    const std::string quoted = "\"" + raw(i) + "\"";
    for (std::size_t at = 0; (at = text.find(quoted, at)) != std::string::npos;)
      text.replace(at, quoted.size(), kRawTexts[i]);
  }
  return text;
}

class Mutation {
 public:
  Mutation(Value& root, std::mt19937& random) : random_(random) { collect(root); }

  void run() {
    Value& node = *nodes_[below(nodes_.size())];
    switch (below(8)) {
      case 0:
      case 1: {
        static const std::vector<Value> all = poisons();
        node = all[below(all.size())];
        break;
      }
      case 2:
        node = Value(*nodes_[below(nodes_.size())]);
        break;
      case 3:
        shrink(node);
        break;
      case 4:
        grow(node);
        break;
      case 5:
        rename(node);
        break;
      default:
        nudge(node);
    }
  }

 private:
  std::size_t below(std::size_t n) { return random_() % n; }

  void collect(Value& value) {
    nodes_.push_back(&value);
    if (value.is_array())
      for (auto& item : value.as_array()) collect(item);
    if (value.is_object())
      for (auto& [name, member] : value.as_object()) {
        names_.push_back(name);
        collect(member);
      }
  }

  void shrink(Value& node) {
    const auto erase = [&](auto& list) {
      if (!list.empty()) list.erase(list.begin() + static_cast<std::ptrdiff_t>(below(list.size())));
    };
    if (node.is_array()) erase(node.as_array());
    if (node.is_object()) erase(node.as_object());
  }

  /// A member or an item once more: the readers see a name twice, or a list that is too long.
  void grow(Value& node) {
    const auto repeat = [&](auto& list) {
      if (list.empty()) return;
      auto copy = list[below(list.size())];
      list.insert(list.begin() + static_cast<std::ptrdiff_t>(below(list.size() + 1)),
                  std::move(copy));
    };
    if (node.is_array()) repeat(node.as_array());
    if (node.is_object()) repeat(node.as_object());
  }

  void rename(Value& node) {
    if (!node.is_object() || node.as_object().empty()) return nudge(node);
    auto& object = node.as_object();
    auto& name = object[below(object.size())].first;
    name = below(3) ? names_[below(names_.size())] : mutate_bytes(name, name.size() + 8);
  }

  void nudge(Value& node) {
    if (node.is_int()) {
      auto bits = static_cast<std::uint64_t>(node.as_int());
      switch (below(4)) {
        case 0:
          ++bits;
          break;
        case 1:
          --bits;
          break;
        case 2:
          bits *= 2;
          break;
        default:
          bits ^= std::uint64_t{1} << below(64);
      }
      node = static_cast<std::int64_t>(bits);
    } else if (node.is_string()) {
      node = mutate_bytes(node.as_string(), node.as_string().size() + 16);
    } else if (node.is_bool()) {
      node = !node.as_bool();
    } else {
      grow(node);
    }
  }

  std::mt19937& random_;
  std::vector<Value*> nodes_;
  std::vector<std::string> names_;
};

}  // namespace

std::string mutate_bytes(std::string text, std::size_t most_bytes) {
  const std::size_t size = std::min(text.size(), most_bytes);
  text.resize(most_bytes);
  text.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(text.data()), size, most_bytes));
  return text;
}

std::string mutate_json(std::string text, std::size_t most_bytes, std::mt19937& random) {
  Value root;
  try {
    root = parse_json(text);
  } catch (const Error&) {
    return mutate_bytes(std::move(text), most_bytes);
  }
  if (random() % 16 == 0) return mutate_bytes(std::move(text), most_bytes);
  for (std::size_t i = 1 + random() % kMostMutations; i > 0; --i) Mutation(root, random).run();
  std::string out = with_raw_texts(to_json(root));
  return out.size() <= most_bytes ? out : mutate_bytes(std::move(text), most_bytes);
}

}  // namespace graft::fuzz
