#include "registry/registry.h"

#include "graft/error.h"

#include "thrown_by.h"

using namespace graft;
using test::contains;
using Kind = Decision::Kind;

namespace {

const ClaimRow kA{"org.a", "/p/liba.so", "m", "Linear", "cpu", 0};
const ClaimRow kB{"org.b", "/p/libb.so", "m", "Linear", "cpu", 0};

struct File {
  std::string name;
  Tier tier;
  std::string patches;  ///< one a line, the first on line 3
  std::string rest = {};
};

Registry registry(const std::vector<ClaimRow>& claims, const std::vector<File>& files) {
  Registry::Builder builder;
  builder.add_claims(claims);
  for (const auto& file : files)
    builder.add_text("graft: 1\npatches:\n" + file.patches + "\n" + file.rest, file.name,
                     file.tier);
  return builder.build();
}

Registry of_user(const std::string& patches, const std::string& rest = {}) {
  return registry({kA}, {{"u.yaml", Tier::user, patches, rest}});
}

Decision decide(const Registry& rules, const std::string& path = "model.layers.0.mlp.up",
                const std::string& module_class = "Linear", const std::string& device = "cpu") {
  return rules.decide({"m", module_class, path, device});
}

bool lost(const Decision& decision, const std::string& who, const std::string& why) {
  for (const auto& loser : decision.losers)
    if (loser.who == who && loser.reason.find(why) != std::string::npos) return true;
  for (const auto& loser : decision.losers) MESSAGE(loser.who << ": " << loser.reason);
  return false;
}

}  // namespace

TEST_CASE(
    "the most specific rule wins: exact before glob before expression before class before *") {
  const std::string any = "- {class: '*', methods: m, keep: any}\n";
  const std::string cls = "- {class: Linear, methods: m, keep: class}\n";
  const std::string reg = "- {class: '*', methods: m, match: 're:model.*up', keep: regex}\n";
  const std::string glob = "- {class: '*', methods: m, match: 'model.*', keep: glob}\n";
  const std::string exact =
      "- {class: '*', methods: m, match: model.layers.0.mlp.up, keep: exact}\n";
  CHECK(decide(of_user(exact + glob + reg + cls + any)).reason == "exact (u.yaml:3)");
  CHECK(decide(of_user(glob + reg + cls + any)).reason == "glob (u.yaml:3)");
  CHECK(decide(of_user(reg + cls + any)).reason == "regex (u.yaml:3)");
  CHECK(decide(of_user(cls + any)).reason == "class (u.yaml:3)");
  CHECK(decide(of_user(any)).reason == "any (u.yaml:3)");
  const auto all = decide(of_user(exact + glob + reg + cls + any));
  for (const char* line : {"u.yaml:4", "u.yaml:5", "u.yaml:6", "u.yaml:7"})
    CHECK(lost(all, line, "less specific than u.yaml:3"));
  CHECK(lost(all, "org.a", "u.yaml:3 keeps the module dense"));
}

TEST_CASE("specificity counts before the order of files") {
  const auto rules = registry(
      {kA},
      {{"plugin.yaml", Tier::plugin, "- {class: '*', methods: m, match: 'model.*', keep: glob}"},
       {"cli.yaml", Tier::command_line, "- {class: Linear, methods: m, keep: class}"}});
  CHECK(decide(rules).reason == "glob (plugin.yaml:3)");
}

TEST_CASE("between equals the later file wins: plugin, installed, user, command line") {
  std::vector<File> files;
  for (const auto& [name, tier] :
       std::vector<std::pair<std::string, Tier>>{{"z.yaml", Tier::plugin},
                                                 {"y.yaml", Tier::installed},
                                                 {"x.yaml", Tier::user},
                                                 {"w.yaml", Tier::command_line}}) {
    files.push_back({name, tier, "- {class: Linear, methods: m, keep: here}"});
    CHECK(decide(registry({kA}, files)).reason == "here (" + name + ":3)");
  }
  CHECK(lost(decide(registry({kA}, files)), "x.yaml:3", "overruled by w.yaml:3"));
  const auto two =
      registry({kA}, {{"b.yaml", Tier::user, "- {class: Linear, methods: m, keep: b}"},
                      {"a.yaml", Tier::user, "- {class: Linear, methods: m, keep: a}"}});
  CHECK(decide(two).reason == "b (b.yaml:3)");  // by name, not by the order of reading
}

TEST_CASE("two rules of one file about the same modules are an error that names both lines") {
  const auto text = test::message_of([] {
    of_user(
        "- {class: Linear, methods: [m, n], keep: a}\n- {class: Linear, methods: [m], keep: b}");
  });
  CHECK(
      contains(text, "two rules of one file decide about the same modules: u.yaml:3 and u.yaml:4"));
  CHECK(contains(text, "remove one of them"));
  CHECK(contains(test::message_of([] {
                   of_user(
                       "- {class: A, methods: '*', keep: a}\n- {class: A, methods: m, keep: b}");
                 }),
                 "u.yaml:3 and u.yaml:4"));
  of_user("- {class: A, methods: m, keep: a}\n- {class: A, methods: n, keep: b}");
  of_user(
      "- {class: A, methods: m, keep: a, device: cpu}\n- {class: A, methods: m, keep: b, device: "
      "cuda}");
}

TEST_CASE("a pin chooses among plugins with the same claim") {
  const auto rules =
      registry({kA, kB}, {{"u.yaml", Tier::user, "- {class: Linear, methods: m, plugin: org.b}"}});
  const auto decision = decide(rules);
  REQUIRE(decision.kind == Kind::claims);
  REQUIRE(decision.claims.size() == 1);
  CHECK(decision.claims[0].plugin_id == "org.b");
  CHECK(decision.reason == "u.yaml:3");
  CHECK(lost(decision, "org.a", "u.yaml:3 pins org.b"));
}

TEST_CASE("a pin to a plugin that is not there says so instead of taking another") {
  const auto decision = decide(of_user("- {class: Linear, methods: m, plugin: org.missing}"));
  CHECK(decision.kind == Kind::none);
  CHECK(contains(
      decision.reason,
      "u.yaml:3 pins org.missing, which is not loaded or does not claim the class Linear"));
}

TEST_CASE("priority of the registry counts before priority of the claim") {
  auto strong = kB;
  strong.priority = 5;
  CHECK(decide(registry({kA, strong}, {})).claims.at(0).plugin_id == "org.b");
  CHECK(decide(registry({kA, strong}, {})).claims.at(1).plugin_id == "org.a");
  const auto rules = registry(
      {kA, strong},
      {{"u.yaml", Tier::user, "- {class: Linear, methods: m, plugin: org.a, priority: 10}"}});
  CHECK(decide(rules).claims.at(0).plugin_id == "org.a");
}

TEST_CASE("two plugins with one claim are an error that names both files and the deciding line") {
  const auto error = test::thrown_by([] { decide(registry({kA, kB}, {})); });
  CHECK(error.kind() == ErrorKind::plugin);
  CHECK(contains(error.what(), "/p/liba.so and /p/libb.so"));
  CHECK(contains(error.what(), "model.layers.0.mlp.up: two plugins claim the class Linear for m"));
  CHECK(contains(error.what(), "{class: Linear, methods: [m], plugin: org.a}"));
}

TEST_CASE("an alias makes a class claimed that no plugin knows") {
  const auto rules = of_user("", "aliases: {ColumnParallelLinear: Linear}\n");
  const auto decision = decide(rules, "x", "ColumnParallelLinear");
  CHECK(decision.kind == Kind::claims);
  CHECK(decision.resolved_class == "Linear");
  CHECK(decide(rules, "x", "RowParallelLinear").kind == Kind::none);
  // Rules for either name hold.
  CHECK(decide(of_user("- {class: Linear, methods: m, keep: k}", "aliases: {Other: Linear}\n"), "x",
               "Other")
            .kind == Kind::keep);
  CHECK(decide(of_user("- {class: Other, methods: m, keep: k}", "aliases: {Other: Linear}\n"), "x",
               "Other")
            .kind == Kind::keep);
}

TEST_CASE("a rule that keeps gives its reason and its line") {
  const auto decision =
      decide(of_user("- {class: '*', methods: '*', match: lm_head, keep: output head}"), "lm_head");
  CHECK(decision.kind == Kind::keep);
  CHECK(decision.reason == "output head (u.yaml:3)");
}

TEST_CASE("a module that no rule and no claim fits is left as it is, with the reason") {
  const auto decision = decide(of_user(""), "model.norm", "LlamaRMSNorm");
  CHECK(decision.kind == Kind::none);
  CHECK(decision.reason == "no plugin claims the class LlamaRMSNorm for m on cpu");
}

TEST_CASE("a rule for a class names the replacement, whoever builds it") {
  const auto decision = decide(
      of_user("- {class: Experts, methods: m, replacement: SequentialExperts}"), "x", "Experts");
  CHECK(decision.kind == Kind::replace);
  CHECK(decision.rule->replacement == "SequentialExperts");
  CHECK(decision.reason == "u.yaml:3");
}

TEST_CASE("skip lists add up") {
  Registry::Builder builder;
  builder.add_text("graft: 1\nskip: [lm_head]\n", "a.yaml", Tier::installed);
  builder.add_text("graft: 1\nskip: [router, gate]\n", "b.yaml", Tier::user);
  const auto added = builder.build();
  CHECK(added.skips() == std::vector<std::string>{"lm_head", "router", "gate"});
  CHECK(added.skip_names({"mine"}).match("model.mine") == "mine");
  CHECK(added.skip_names({"mine"}).match("model.router") == "router");
}

TEST_CASE("a skip list that says {replace: ...} starts over") {
  Registry::Builder again;
  again.add_text("graft: 1\nskip: [lm_head]\n", "a.yaml", Tier::installed);
  again.add_text("graft: 1\nskip: {replace: [router]}\n", "b.yaml", Tier::user);
  const auto replaced = again.build();
  CHECK(replaced.skips() == std::vector<std::string>{"router"});
  CHECK_FALSE(replaced.skip_names({}).match("lm_head"));
}

TEST_CASE("a rule and a claim hold for their device only") {
  const auto rules = of_user("- {class: Linear, methods: m, keep: no, device: cuda}");
  const auto cpu = decide(rules);
  CHECK(cpu.kind == Kind::claims);
  CHECK(lost(cpu, "u.yaml:3", "it is for the device cuda"));
  const auto cuda = decide(rules, "model.layers.0.mlp.up", "Linear", "cuda");
  CHECK(cuda.kind == Kind::keep);
  const auto nobody = decide(registry({kA}, {}), "x", "Linear", "cuda");
  CHECK(nobody.kind == Kind::none);
  CHECK(lost(nobody, "org.a", "it claims the class on the device cpu"));
}

TEST_CASE("a rule holds for its methods only") {
  const auto decision = decide(of_user("- {class: Linear, methods: [n], keep: no}"));
  CHECK(decision.kind == Kind::claims);
  CHECK(lost(decision, "u.yaml:3", "it is not for the method m"));
}

TEST_CASE("options of the winning rule come with the decision") {
  CHECK(decide(of_user("- {class: Linear, methods: m, options: {bits: 3}}"))
            .options.at("bits")
            .as_int() == 3);
}

TEST_CASE("a misspelt method is noted with what was meant") {
  auto claim = kA;
  claim.method = "gptq";
  const auto rules =
      registry({claim}, {{"u.yaml", Tier::user, "- {class: Linear, methods: [gtpq], keep: x}"}});
  REQUIRE(rules.notes().size() == 1);
  CHECK(rules.notes()[0] ==
        "u.yaml:3: no loaded plugin has the method 'gtpq'; did you mean 'gptq'?");
}

TEST_CASE("replacements that go in a circle are refused, ways that only cross are not") {
  const auto text = test::message_of([] {
    of_user(
        "- {class: A, methods: m, replacement: B}\n- {class: B, methods: '*', replacement: C}\n"
        "- {class: C, methods: m, replacement: A}");
  });
  CHECK(contains(text, "u.yaml:3: replacements go in a circle through the class 'A'"));
  of_user("- {class: A, methods: m, replacement: B}\n- {class: B, methods: n, replacement: A}");
}

TEST_CASE("replacements that are replaced in turn more often than anybody means are refused") {
  std::string rules;
  for (int i = 0; i < 120; ++i)
    rules += "- {class: A" + std::to_string(i) + ", methods: m, replacement: A" +
             std::to_string(i + 1) + "}\n";
  CHECK(contains(test::message_of([&] { of_user(rules); }),
                 "u.yaml:3: replacements are replaced in turn without an end: expected at most 100 "
                 "steps"));
}

TEST_CASE("a hundred thousand rules in many files are one registry") {
  Registry::Builder builder;
  constexpr int kFiles = 20, kRules = 5000;
  for (int file = 0; file < kFiles; ++file) {
    std::string text = "graft: 1\npatches:\n";
    for (int i = 0; i < kRules; ++i)
      text += "- {class: C" + std::to_string(i) + ", methods: m, keep: x}\n";
    builder.add_text(text, "f" + std::to_string(file) + ".yaml", Tier::user);
  }
  const Registry registry = builder.build();
  CHECK(registry.rules().size() == kFiles * kRules);
  const auto decision = registry.decide({"m", "C7", "model.layers.0", "cpu"});
  CHECK(decision.kind == Decision::Kind::keep);
  CHECK(decision.losers.size() == kFiles - 1);
}

TEST_CASE("a pattern that takes too long is an error that names the rule's line") {
  const auto rules = of_user("- {class: Linear, methods: m, keep: x, match: 're:(a+)+'}");
  CHECK(contains(test::message_of([&] { decide(rules, std::string(100, 'a') + "!"); }),
                 "u.yaml:3: the regular expression '(a+)+' takes too long on"));
}
