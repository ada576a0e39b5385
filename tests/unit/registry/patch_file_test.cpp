#include "registry/patch_file.h"

#include "graft/error.h"

#include "temporary_folder.h"
#include "thrown_by.h"

using namespace graft;
using test::contains;

namespace {

PatchFile parse(std::string_view yaml) { return parse_patch_file(yaml, "r.yaml", Tier::user); }

std::string refused(std::string_view yaml) {
  const auto error = test::thrown_by([&] { parse(yaml); });
  CHECK(error.kind() == ErrorKind::plugin);
  return error.what();
}

std::string patch(const std::string& body) { return "graft: 1\npatches:\n  - {" + body + "}\n"; }

}  // namespace

TEST_CASE("every key of a patch arrives, with its line") {
  const auto file = parse(R"(graft: 1
patches:
  - class: SpecialLinear
    methods: [one, two]
    replacement: QuantizedSpecialLinear
    plugin: org.example.special
    match: "model.layers.*.mlp.*"
    device: cuda
    priority: -10
    options: {group_size: 32, sym: true, damp: 0.5, note: "7", no: no, octal: 08,
              exp: 1e3, word: nan}
aliases: {ColumnParallelLinear: Linear}
skip: [router]
)");
  REQUIRE(file.rules.size() == 1);
  const Rule& rule = file.rules[0];
  CHECK(rule.module_class == "SpecialLinear");
  CHECK(rule.methods == std::vector<std::string>{"one", "two"});
  CHECK(rule.replacement == "QuantizedSpecialLinear");
  CHECK(rule.plugin == "org.example.special");
  CHECK(rule.match->text() == "model.layers.*.mlp.*");
  CHECK(rule.device == "cuda");
  CHECK(rule.priority == -10);
  CHECK(rule.origin.text() == "r.yaml:3");
  CHECK(rule.tier == Tier::user);
  CHECK(file.aliases.at(0) ==
        std::pair<std::string, std::string>("ColumnParallelLinear", "Linear"));
  CHECK(file.skips == std::vector<std::string>{"router"});
  CHECK_FALSE(file.skips_replace);
  CHECK(rule.options.at("group_size").as_int() == 32);
  CHECK(rule.options.at("sym").as_bool());
  CHECK(rule.options.at("damp").as_double() == 0.5);
  CHECK(rule.options.at("note").as_string() == "7");  // quoted: text
  CHECK(rule.options.at("no").as_string() == "no");   // YAML 1.2 core: no bool
  CHECK(rule.options.at("octal").as_int() == 8);
  CHECK(rule.options.at("exp").as_double() == 1000.0);
  CHECK(rule.options.at("word").as_string() == "nan");
}

TEST_CASE("names stay text whatever YAML 1.1 would make of them") {
  const auto file = parse(patch("class: no, methods: [1e3, 08, yes], keep: ~on") + "");
  CHECK(file.rules.at(0).module_class == "no");
  CHECK(file.rules.at(0).methods == std::vector<std::string>{"1e3", "08", "yes"});
}

TEST_CASE("an empty file and one of comments alone mean no rules, said aloud") {
  for (const std::string_view text : {"", "# nothing yet\n\n", "---\n", "~"}) {
    CAPTURE(text);
    const auto file = parse(text);
    CHECK(file.rules.empty());
    REQUIRE(file.notes.size() == 1);
    CHECK(file.notes[0] == "r.yaml: the file is empty: no rules");
  }
}

TEST_CASE("anchors, aliases, tags and merge keys are refused with line and column") {
  CHECK(contains(refused("graft: 1\npatches: &a [*a]\n"), "r.yaml:2:10: anchors are not allowed"));
  CHECK(contains(refused("graft: 1\nskip: *a\n"), "r.yaml:2:7: "));
  CHECK(contains(refused("graft: 1\nskip: !!python/object:os.system [x]\n"),
                 "r.yaml:2:7: tags are not allowed, found 'tag:yaml.org,2002:python/object"));
  CHECK(contains(refused("graft: 1\npatches:\n  - {<<: {class: A}, methods: x}\n"),
                 "r.yaml:3:6: merge keys are not allowed"));
  // An alias bomb is refused at its first anchor.
  CHECK(contains(refused("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n"),
                 "r.yaml:1:4: anchors are not allowed"));
}

TEST_CASE("a duplicate key, a tab and broken YAML are refused with line and column") {
  CHECK(contains(refused("graft: 1\ngraft: 1\n"), "r.yaml:2:1: the key 'graft' occurs twice"));
  CHECK(contains(refused(patch("class: A, class: B, methods: x, keep: y")),
                 "r.yaml:3:16: the key 'class' occurs twice"));
  CHECK(contains(refused("graft: 1\npatches:\n\t- {class: A}\n"),
                 "r.yaml:3:2: not valid YAML: illegal block entry"));
  CHECK(contains(refused("graft: 1\npatches: [\n"), "not valid YAML: "));
  CHECK(contains(refused("graft: 1\n---\ngraft: 1\n"), "r.yaml: more than one YAML document"));
}

TEST_CASE("nesting is limited in both styles, and takes no stack") {
  for (const std::size_t depth : {65U, 300U, 10'000U, 400'000U}) {
    CAPTURE(depth);
    CHECK(contains(refused("graft: 1\nskip: " + std::string(depth, '[')),
                   "nested deeper than 64 levels"));
    CHECK(contains(refused("graft: 1\nskip: " + std::string(depth, '{')),
                   "nested deeper than 64 levels"));
    std::string dashes = "graft: 1\nskip:\n";
    for (std::size_t i = 0; i < depth; ++i) dashes += "- ";
    CHECK(contains(refused(dashes + "x\n"), "nested deeper than 64 levels"));
  }
}

TEST_CASE("brackets in expressions are no nesting") {
  std::string yaml = "graft: 1\npatches:\n";
  for (int i = 0; i < 400; ++i)
    yaml += "  - {class: A" + std::to_string(i) + ", methods: x, keep: y, match: 're:\\[[[]a'}\n";
  CHECK(parse(yaml).rules.size() == 400);
}

TEST_CASE("more nodes or bytes than the limit are refused") {
  std::string many = "graft: 1\nskip: [";
  for (int i = 0; i < 100'001; ++i) many += "a,";
  CHECK(contains(refused(many + "a]\n"), "more than 100000 nodes"));
  const std::string large(50'000'000, '#');
  CHECK(contains(refused(large),
                 "r.yaml: the file is too large: expected at most 1048576 bytes, found 50000000"));
}

TEST_CASE("a file that is too large is refused without being read whole") {
  const test::TemporaryFolder folder;
  const auto file = folder.write("r.yaml", "graft: 1\n");
  std::filesystem::resize_file(file, std::uintmax_t{1} << 40);
  Registry::Builder builder;
  CHECK(contains(test::message_of([&] { builder.add_file(file, Tier::user); }),
                 "r.yaml: the file is too large: expected at most 1048576 bytes"));
  CHECK(contains(test::message_of([&] { builder.add_file(folder.path(), Tier::user); }),
                 "no such registry file"));
}

TEST_CASE("the format version is required and must be known") {
  CHECK(contains(refused("patches: []\n"),
                 "r.yaml:1:1: the format version is missing: expected a line \"graft: 1\""));
  CHECK(contains(refused("graft: 2\n"),
                 "r.yaml:1:8: unknown format version: expected graft: 1, found '2'"));
  CHECK(contains(refused("[1, 2]\n"), "r.yaml:1:1: wrong type: expected a map with graft"));
}

TEST_CASE("a patch that cannot be meant is refused with its line") {
  CHECK(contains(refused(patch("class: A, methods: [], keep: x")),
                 "r.yaml:3:5: a patch needs methods: expected methods: [name, ...] or \"*\""));
  CHECK(contains(refused(patch("class: A, keep: x")), "a patch needs methods"));
  CHECK(contains(refused(patch("class: A, methods: x, keep: y, replacement: B")),
                 "a patch either keeps or replaces: expected keep or replacement, found 'both'"));
  CHECK(contains(refused(patch("class: A, methods: x, replacement: A")),
                 "a class cannot replace itself: expected another class, found 'A'"));
  CHECK(contains(refused(patch("class: '*', methods: x, replacement: A")),
                 "a patch that replaces needs a class"));
  CHECK(contains(refused(patch("class: A, methods: x, keep: y, device: tpu")),
                 "unknown device: expected cpu or cuda, found 'tpu'"));
  CHECK(contains(refused(patch("class: A, methods: x, keep: y, priority: high")),
                 "wrong type: expected an integer, found 'high'"));
  CHECK(contains(refused(patch("class: A, methods: x, keep: y, priority: '1'")),
                 "wrong type: expected an integer"));
  CHECK(contains(refused(patch("class: A, methods: x, keep: y, priority: 99999999999")),
                 "wrong type: expected an integer"));
  CHECK(contains(refused(patch("class: A, methods: x, keep: y, match: 're:('")),
                 "r.yaml:3:44: the regular expression '(' is not valid"));
  CHECK(contains(refused(patch("class: '', methods: x, keep: y")), "the text is empty"));
  CHECK(contains(refused(patch("class: [A], methods: x, keep: y")), "expected text"));
  CHECK(contains(refused("graft: 1\nskip: {replaces: [a]}\n"),
                 "r.yaml:2:8: unknown key in skip: expected replace, found 'replaces'"));
  CHECK(contains(refused("graft: 1\nskip: [a, '']\n"), "r.yaml:2:11: the text is empty"));
}

TEST_CASE("an unknown key is noted with what was meant") {
  const auto file = parse("graft: 1\npatchs: []\npatches:\n  - {clas: A, methods: x, keep: y}\n");
  REQUIRE(file.notes.size() == 2);
  CHECK(file.notes[0] == "r.yaml:2:1: unknown key 'patchs'; did you mean 'patches'?");
  CHECK(file.notes[1] == "r.yaml:4:6: unknown key 'clas'; did you mean 'class'?");
}

TEST_CASE("random bytes are rules or an Error, nothing else") {
  std::uint64_t state = 42;
  const std::string alphabet = "graft: 1\n-[]{},&*!|>'\"#%@`\t\x01\xff~<:?class methods";
  for (int round = 0; round < 3000; ++round) {
    std::string text = round % 2 ? "graft: 1\n" : "";
    for (int i = 0; i < 40; ++i) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      text += alphabet[(state >> 33) % alphabet.size()];
    }
    try {
      parse(text);
    } catch (const Error&) {
    }
  }
}
