#include "registry/name_match.h"

#include "graft/error.h"

#include "thrown_by.h"

using namespace graft;
using test::contains;

namespace {

bool skips(const std::string& name, const std::vector<std::string>& entries) {
  return SkipNames(entries).match(name).has_value();
}

}  // namespace

// Names and lists as Transformers 5 answers; where its version 4 for bitsandbytes
// skips too, the union of both decides.
TEST_CASE("a skip entry matches from the start up to a boundary, or as the end of the name") {
  CHECK(skips("lm_head", {"lm_head"}));
  CHECK(skips("model.lm_head", {"lm_head"}));
  CHECK(skips("xlm_head", {"lm_head"}));
  CHECK_FALSE(skips("model.layers.0.mlp.gate_proj", {"gate", "mlp.gate"}));
  CHECK(skips("model.layers.0.mlp.gate", {"gate", "mlp.gate"}));
  CHECK(skips("model.layers.1.q_proj", {"model.layers.1"}));
  CHECK_FALSE(skips("model.layers.11.q_proj", {"model.layers.1"}));
  CHECK(skips("model.layers.0.self_attn.q_proj", {"proj"}));
  CHECK(skips("model.layers.0.self_attn.q_proj", {".*self_attn"}));
  CHECK(skips("visual.blocks.0.fc", {"visual"}));
  CHECK(skips("a.b", {"a|c"}));
}

TEST_CASE(
    "a skip entry that is a component of the name skips what is below, as Transformers 4 does") {
  CHECK(skips("model.layers.0.self_attn.q_proj", {"self_attn"}));
  CHECK(skips("model.visual.blocks.0.fc", {"visual"}));
  CHECK(skips("model.layers.0.xself_attn.q_proj", {"self_attn"}));  // its substring rule
  CHECK_FALSE(skips("model.layers.0.self_attn2.q_proj", {"self_attn"}));
}

TEST_CASE("a skip entry is an expression, so its dots match any character") {
  CHECK(skips("model.layers.1.mlp", {"model.layers.1."}));
  CHECK(skips("model.layers.12.mlp", {"model.layers.1."}));  // an expression: `.` is any character
  CHECK_FALSE(skips("model.layers.123.mlp", {"model.layers.1."}));
}

TEST_CASE("an empty skip entry would match everything and is refused") {
  const auto error = test::thrown_by([] { SkipNames({"lm_head", ""}); });
  CHECK(error.kind() == ErrorKind::model);
  CHECK(contains(error.what(), "an empty entry in a skip list would skip every module; remove it"));
}

TEST_CASE("a skip entry that is no valid expression is compared as text") {
  CHECK(skips("model.(odd", {"(odd"}));
  CHECK_FALSE(skips("model.odd", {"(odd"}));
}

TEST_CASE("a skip list knows which entries matched nothing") {
  SkipNames names({"lm_head", "missing", "gate"});
  CHECK(names.match("lm_head") == "lm_head");
  CHECK(names.match("a.gate") == "gate");
  CHECK_FALSE(names.match("model.layers.0.up").has_value());
  CHECK(names.unmatched() == std::vector<std::string>{"missing"});
}

TEST_CASE("a catastrophic expression is an error that names it, not a hang") {
  const std::string subject = std::string(200, 'a') + "b";
  const auto text = test::message_of([&] { SkipNames({"(a+)+$"}).match(subject + "."); });
  CHECK(contains(text, "(a+)+$"));
  CHECK(contains(text, "takes too long on 'aaa"));
  CHECK(contains(text, "write it without nested repetition"));
  CHECK(contains(test::message_of([&] { NamePattern("re:(a+)+").matches(subject); }),
                 "'(a+)+' takes too long"));
}

TEST_CASE("a huge expression is refused or answered, never a crash") {
  const std::string deep = std::string(20'000, '(') + "a" + std::string(20'000, ')');
  CHECK(
      contains(test::message_of([&] { NamePattern("re:" + deep); }), "is not valid at character"));
}

TEST_CASE("a pattern is exact, a glob or an expression of the whole path") {
  CHECK(NamePattern("model.layers.0").specificity() == Specificity::exact);
  CHECK(NamePattern("model.layers.0").matches("model.layers.0"));
  CHECK_FALSE(NamePattern("model.layers.0").matches("model.layers.01"));
  CHECK(NamePattern("model.*.q?proj").specificity() == Specificity::glob);
  CHECK(NamePattern("model.*.q?proj").matches("model.layers.3.self_attn.q_proj"));
  CHECK_FALSE(NamePattern("model.*.q?proj").matches("model.layers.3.self_attn.qproj"));
  CHECK(NamePattern("*").matches(""));
  CHECK(NamePattern("a*").matches("a"));
  CHECK_FALSE(NamePattern("?").matches(""));
  CHECK(NamePattern("re:model\\.layers\\.\\d+").specificity() == Specificity::regex);
  CHECK(NamePattern("re:model\\.layers\\.\\d+").matches("model.layers.17"));
  CHECK_FALSE(NamePattern("re:model\\.layers\\.\\d+").matches("model.layers.17.mlp"));
}

TEST_CASE("a glob of many stars on a long name takes no time") {
  std::string stars;
  for (int i = 0; i < 1000; ++i) stars += "a*";
  CHECK_FALSE(NamePattern(stars + "b").matches(std::string(10'000, 'a')));
}

TEST_CASE("a mistake in an expression is told with its place") {
  const auto error = test::thrown_by([] { NamePattern("re:layers.(0"); });
  CHECK(error.kind() == ErrorKind::plugin);
  CHECK(contains(error.what(),
                 "the regular expression 'layers.(0' is not valid at character 9: missing"));
}

TEST_CASE("a name that is no text is no matter of time") {
  CHECK(contains(test::message_of([] { NamePattern("re:a.*").matches("a\xff"); }),
                 "the regular expression 'a.*' cannot be matched with 'a\\xff': UTF-8 error"));
}
