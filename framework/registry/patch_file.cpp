#include "registry/patch_file.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <charconv>
#include <set>
#include <sstream>

#include "graft/error.h"

namespace graft {
namespace {

constexpr std::size_t kMaxDepth = 64, kMaxNodes = 100'000;

struct Member;

/// A YAML node with its place. Plain scalars are text until somebody asks for another type; quoted
/// ones stay text.
struct Node {
  enum class Kind { null, scalar, list, map } kind = Kind::null;
  std::string text;
  bool quoted = false;
  int line = 0, column = 0;
  std::vector<Node> items;
  std::vector<Member> members;
};
struct Member {
  Node key, value;
};

class Reader : public YAML::EventHandler {
 public:
  explicit Reader(const std::string& file) : file_(file) {}

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override {
    put(node(Node::Kind::null, mark));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    fail(mark, "aliases are not allowed");
  }
  void OnAnchor(const YAML::Mark& mark, const std::string&) override {
    fail(mark, "anchors are not allowed");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                const std::string& value) override {
    // yaml-cpp gives "!" for a quoted scalar, "?" or nothing for a plain one.
    if (!tag.empty() && tag != "?" && tag != "!")
      fail(mark, "tags are not allowed, found " + quote(tag));
    Node out = node(Node::Kind::scalar, mark);
    out.text = value;
    out.quoted = tag == "!";
    put(std::move(out));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, Node::Kind::list);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, Node::Kind::map);
  }
  void OnMapEnd() override { close(); }

  Node take() { return std::move(root_); }

 private:
  [[noreturn]] void fail(const YAML::Mark& mark, const std::string& what) const {
    throw Error(ErrorKind::plugin, what)
        .at(file_ + ":" + std::to_string(mark.line + 1) + ":" + std::to_string(mark.column + 1));
  }
  Node node(Node::Kind kind, const YAML::Mark& mark) {
    if (++nodes_ > kMaxNodes) fail(mark, "more than " + std::to_string(kMaxNodes) + " nodes");
    Node out;
    out.kind = kind;
    out.line = mark.line + 1;
    out.column = mark.column + 1;
    return out;
  }
  void open(const YAML::Mark& mark, const std::string& tag, Node::Kind kind) {
    if (!tag.empty() && tag != "?" && tag != "!")
      fail(mark, "tags are not allowed, found " + quote(tag));
    if (stack_.size() >= kMaxDepth)
      fail(mark, "nested deeper than " + std::to_string(kMaxDepth) + " levels");
    stack_.push_back({node(kind, mark), {}, {}, false});
  }
  void close() {
    Node done = std::move(stack_.back().node);
    stack_.pop_back();
    put(std::move(done));
  }
  void put(Node value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return;
    }
    Level& top = stack_.back();
    if (top.node.kind == Node::Kind::list) {
      top.node.items.push_back(std::move(value));
    } else if (!top.has_key) {
      const YAML::Mark mark = mark_of(value);
      if (value.kind != Node::Kind::scalar) fail(mark, "a key must be text");
      if (value.text == "<<") fail(mark, "merge keys are not allowed");
      if (!top.keys.insert(value.text).second)
        fail(mark, "the key " + quote(value.text) + " occurs twice");
      top.key = std::move(value);
      top.has_key = true;
    } else {
      top.node.members.push_back({std::move(top.key), std::move(value)});
      top.has_key = false;
    }
  }
  static YAML::Mark mark_of(const Node& node) {
    YAML::Mark mark;
    mark.line = node.line - 1;
    mark.column = node.column - 1;
    return mark;
  }

  struct Level {
    Node node, key;
    std::set<std::string> keys;
    bool has_key = false;
  };
  std::string file_;
  std::vector<Level> stack_;
  Node root_;
  std::size_t nodes_ = 0;
};

class Parser {
 public:
  Parser(const std::string& file, Tier tier) : file_(file), tier_(tier) {}

  PatchFile run(const Node& root) {
    if (root.kind == Node::Kind::null) {
      out_.notes.push_back(file_ + ": the file is empty: no rules");
      return std::move(out_);
    }
    expect(root, Node::Kind::map, "a map with graft, patches, aliases, skip");
    bool versioned = false;
    for (const auto& [key, value] : root.members) {
      if (key.text == "graft") {
        versioned = true;
        if (value.kind != Node::Kind::scalar || value.text != "1")
          fail(value, "unknown format version", "graft: 1", value.text);
      } else if (key.text == "patches") {
        if (value.kind == Node::Kind::null) continue;
        expect(value, Node::Kind::list, "a list of patches");
        for (const auto& item : value.items) patch(item);
      } else if (key.text == "aliases") {
        if (value.kind == Node::Kind::null) continue;
        expect(value, Node::Kind::map, "a map of class names");
        for (const auto& [from, to] : value.members) out_.aliases.emplace_back(from.text, text(to));
      } else if (key.text == "skip") {
        skip(value);
      } else {
        unknown(key, {"graft", "patches", "aliases", "skip"});
      }
    }
    if (!versioned) fail(root, "the format version is missing", "a line \"graft: 1\"", "none");
    return std::move(out_);
  }

 private:
  [[noreturn]] void fail(const Node& node, const std::string& what,
                         const std::string& expected = {}, const std::string& found = {}) const {
    Error error(ErrorKind::plugin, what);
    error.at(place(node));
    if (!expected.empty()) error.expected(expected);
    if (!found.empty()) error.found(quote(found));
    throw error;
  }
  std::string place(const Node& node) const {
    return file_ + ":" + std::to_string(node.line) + ":" + std::to_string(node.column);
  }
  void expect(const Node& node, Node::Kind kind, const std::string& what) const {
    if (node.kind != kind)
      fail(node, "wrong type", what, node.kind == Node::Kind::scalar ? node.text : "another type");
  }
  void unknown(const Node& key, const std::vector<std::string>& known) {
    std::string note = place(key) + ": unknown key " + quote(key.text);
    if (const auto near = nearest_names(key.text, known); !near.empty())
      note += "; did you mean " + near + "?";
    out_.notes.push_back(std::move(note));
  }
  const std::string& text(const Node& node) const {
    expect(node, Node::Kind::scalar, "text");
    if (node.text.empty()) fail(node, "the text is empty");
    return node.text;
  }
  std::vector<std::string> texts(const Node& node) const {
    if (node.kind == Node::Kind::scalar) return {text(node)};
    expect(node, Node::Kind::list, "a list of names");
    std::vector<std::string> out;
    for (const auto& item : node.items) out.push_back(text(item));
    return out;
  }
  int integer(const Node& node) const {
    expect(node, Node::Kind::scalar, "an integer");
    int value = 0;
    const auto* end = node.text.data() + node.text.size();
    const auto result = std::from_chars(node.text.data(), end, value);
    if (node.quoted || result.ec != std::errc{} || result.ptr != end)
      fail(node, "wrong type", "an integer", node.text);
    return value;
  }
  /// YAML 1.2 core: null, true, false, decimal integers (08 is 8), floats; all else, "no" and
  /// quoted scalars among it, is text.
  Value value(const Node& node) const {
    switch (node.kind) {
      case Node::Kind::null:
        return {};
      case Node::Kind::list: {
        Value::Array out;
        for (const auto& item : node.items) out.push_back(value(item));
        return out;
      }
      case Node::Kind::map: {
        Value::Object out;
        for (const auto& [key, member] : node.members) out.emplace_back(key.text, value(member));
        return out;
      }
      case Node::Kind::scalar:
        break;
    }
    if (node.quoted) return node.text;
    if (node.text == "true") return true;
    if (node.text == "false") return false;
    if (node.text == "null" || node.text == "~") return {};
    const auto *begin = node.text.data(), *end = begin + node.text.size();
    std::int64_t i = 0;
    if (const auto r = std::from_chars(begin, end, i); r.ec == std::errc{} && r.ptr == end)
      return i;
    // from_chars would take the words inf and nan.
    double d = 0;
    if (node.text.find_first_of("0123456789") > 2) return node.text;
    if (const auto r = std::from_chars(begin, end, d); r.ec == std::errc{} && r.ptr == end)
      return d;
    return node.text;
  }

  void patch(const Node& node) {
    expect(node, Node::Kind::map, "a patch: {class, methods, replacement, ...}");
    Rule rule;
    rule.tier = tier_;
    rule.origin = {file_, node.line};
    for (const auto& [key, member] : node.members) {
      const std::string& name = key.text;
      if (name == "class")
        rule.module_class = text(member);
      else if (name == "methods")
        rule.methods = texts(member);
      else if (name == "replacement")
        rule.replacement = text(member);
      else if (name == "keep")
        rule.keep = text(member);
      else if (name == "plugin")
        rule.plugin = text(member);
      else if (name == "match")
        rule.match = pattern(member);
      else if (name == "device")
        rule.device = text(member);
      else if (name == "priority")
        rule.priority = integer(member);
      else if (name == "options") {
        expect(member, Node::Kind::map, "a map of options");
        rule.options = value(member);
      } else {
        unknown(key, {"class", "methods", "replacement", "keep", "plugin", "match", "device",
                      "priority", "options"});
      }
    }
    if (rule.methods.empty())
      fail(node, "a patch needs methods", "methods: [name, ...] or \"*\"", "none");
    if (rule.keep && !rule.replacement.empty())
      fail(node, "a patch either keeps or replaces", "keep or replacement", "both");
    if (!rule.replacement.empty() && rule.module_class == "*")
      fail(node, "a patch that replaces needs a class, or it would replace its own replacement",
           "class: the name of the class to replace", "*");
    if (rule.replacement == rule.module_class)
      fail(node, "a class cannot replace itself", "another class", rule.replacement);
    if (!rule.device.empty() && rule.device != "cpu" && rule.device != "cuda")
      fail(node, "unknown device", "cpu or cuda", rule.device);
    out_.rules.push_back(std::move(rule));
  }

  NamePattern pattern(const Node& node) const {
    try {
      return NamePattern(text(node));
    } catch (Error& error) {
      throw error.at(place(node));
    }
  }

  void skip(const Node& node) {
    if (node.kind != Node::Kind::map) {
      out_.skips = texts(node);
      return;
    }
    for (const auto& [key, member] : node.members) {
      if (key.text != "replace") fail(key, "unknown key in skip", "replace", key.text);
      out_.skips = texts(member);
      out_.skips_replace = true;
    }
  }

  std::string file_;
  Tier tier_;
  PatchFile out_;
};

}  // namespace

PatchFile parse_patch_file(std::string_view yaml, const std::string& file_name, Tier tier) {
  if (yaml.size() > kMaxPatchFileBytes)
    throw Error(ErrorKind::plugin, "the file is too large")
        .at(file_name)
        .expected("at most " + std::to_string(kMaxPatchFileBytes) + " bytes")
        .found(std::to_string(yaml.size()));
  std::istringstream in{std::string(yaml)};
  Reader reader(file_name);
  try {
    YAML::Parser parser(in);
    if (!parser.HandleNextDocument(reader)) return Parser(file_name, tier).run(Node{});
    Node root = reader.take();
    Reader second(file_name);
    if (parser.HandleNextDocument(second))
      throw Error(ErrorKind::plugin, "more than one YAML document")
          .at(file_name)
          .hint("split it into two files");
    return Parser(file_name, tier).run(root);
  } catch (const YAML::Exception& error) {
    throw Error(ErrorKind::plugin, "not valid YAML: " + error.msg)
        .at(file_name + ":" + std::to_string(error.mark.line + 1) + ":" +
            std::to_string(error.mark.column + 1));
  }
}

}  // namespace graft
