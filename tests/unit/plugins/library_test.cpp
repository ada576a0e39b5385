// What is found out by loading a file, and how loaded plugins are shared: checks 7 to 10 of
// docs/design.md.

#include <unistd.h>

#include "graft/host.h"
#include "graft/plugins.h"

#include "temporary_folder.h"
#include "thrown_by.h"

using namespace graft;
using test::contains;
using test::TemporaryFolder;
namespace fs = std::filesystem;

namespace {

fs::path built(const std::string& name) {
  return fs::path(GRAFT_TEST_PLUGINS) / name / ("libgraft_test_" + name + ".so");
}

Plugins find(std::vector<fs::path> files, std::vector<fs::path> folders = {},
             const Context& context = {}) {
  PluginSearch search;
  search.files = std::move(files);
  search.directories = std::move(folders);
  search.use_default_path = false;
  return Plugins::find(search, context);
}

std::string reason(const std::string& name) {
  const auto plugins = find({built(name)});
  REQUIRE(plugins.verdicts().size() == 1);
  CHECK_FALSE(plugins.verdicts()[0].loaded);
  CHECK(plugins.libraries().empty());
  // Inert ever after, and for the same reason.
  CHECK(find({built(name)}).verdicts()[0].reason == plugins.verdicts()[0].reason);
  return plugins.verdicts()[0].reason;
}

}  // namespace

TEST_CASE("an unresolved symbol is refused with the loader's words and the way to see more") {
  const auto text = reason("unresolved");
  CHECK(contains(text, "cannot be loaded: "));
  CHECK(contains(text, "undefined symbol: graft_test_symbol_that_nobody_defines"));
  CHECK(contains(text, "`ldd -r` on the file lists what it misses"));
}

TEST_CASE("a library that is not there is named with the way to see more") {
  const TemporaryFolder folder;
  std::string file = test::read_file(built("refused"));
  const std::string needed = "libstdc++.so.6";
  const auto at = file.find('\0' + needed);
  REQUIRE(at != std::string::npos);
  file.replace(at + 1, needed.size(), "libabsent.so.6");
  const auto reason = find({folder.write("libx.so", file)}).verdicts().at(0).reason;
  CHECK(contains(reason,
                 "cannot be loaded: 'libabsent.so.6: cannot open shared object file: No such "
                 "file or directory'"));
  CHECK(contains(reason, "`ldd -r` on the file lists what it misses"));
}

TEST_CASE("a stamp without an entry function is refused") {
  CHECK(contains(reason("no_entry"), "a stamp but no function graft_plugin_entry, expected both"));
}

TEST_CASE("an entry that returns nothing is refused") {
  CHECK(contains(reason("null_entry"),
                 "its entry returned nothing for ABI 1.0, expected a descriptor"));
}

TEST_CASE("a descriptor that is too small is refused, one with fields of a later version is not") {
  CHECK(contains(reason("small"), "its descriptor has 48 bytes, expected at least 72"));
  CHECK(contains(reason("large"), "has no quantizer for it"));  // past every check of its size
}

TEST_CASE("a descriptor with another stamp than the file is refused") {
  CHECK(contains(reason("other_stamp"), "its descriptor carries another stamp than the file"));
}

TEST_CASE("a null required pointer is refused by name") {
  CHECK(contains(reason("no_init"), "its descriptor lacks init, which is required"));
  CHECK(contains(reason("no_query"), "its descriptor lacks query, which is required"));
}

TEST_CASE("empty, impossible and unknown claims are refused") {
  CHECK(contains(reason("no_claims"), "it claims no module class, expected at least one"));
  CHECK(contains(reason("many_claims"), "it has 4000000000 claims, expected at most 4096"));
  CHECK(contains(reason("device"), "its claim 0 is for device 'tpu', expected 'cpu' or 'cuda'"));
  CHECK(contains(reason("nameless"), "its claim 0 names no method or no module class"));
}

TEST_CASE("a claimed method without a quantizer is refused") {
  CHECK(contains(reason("no_quantizer"), "it claims method 'mood' but has no quantizer for it"));
}

TEST_CASE("an init that throws is refused with its first line, and the others keep working") {
  const auto plugins = find({built("throwing_init"), built("good")});
  CHECK(contains(plugins.verdicts()[0].reason,
                 "its init failed (a defect): 'no operators today'; report it to its author"));
  CHECK(plugins.verdicts()[1].loaded);
  REQUIRE(plugins.libraries().size() == 1);
  CHECK(plugins.libraries()[0]->id() == "org.graft.test.good");
}

TEST_CASE("an init that declines is refused in its own words, safe to print") {
  CHECK(contains(reason("refused"),
                 "it declined this machine: 'needs a coffee machine\\x0aand a backtrace'"));
}

TEST_CASE("one id from two files is refused, naming the file that has it") {
  const TemporaryFolder folder;
  const auto copy = folder.path() / "libother_name.so";
  fs::copy_file(built("good"), copy);
  const auto plugins = find({built("good"), copy});
  CHECK(plugins.verdicts()[0].loaded);
  CHECK_FALSE(plugins.verdicts()[1].loaded);
  CHECK(contains(plugins.verdicts()[1].reason,
                 "the plugin org.graft.test.good is loaded already from '" +
                     fs::canonical(built("good")).string() +
                     "', and a process can have it once; remove one of the two"));
}

TEST_CASE("twins through links are one plugin, loaded once") {
  const TemporaryFolder folder;
  fs::create_symlink(built("good"), folder.path() / "liba.so");
  fs::create_directory_symlink(built("good").parent_path(), folder.path() / "twin");
  std::error_code not_on_this_disk;
  fs::create_hard_link(built("good"), folder.path() / "libb.so", not_on_this_disk);
  const auto plugins = find({built("good")}, {folder.path(), folder.path() / "twin"});
  for (const auto& verdict : plugins.verdicts()) CHECK_MESSAGE(verdict.loaded, verdict.reason);
  CHECK(plugins.verdicts().size() >= 3);
  REQUIRE(plugins.libraries().size() == 1);
  CHECK(plugins.libraries()[0] == find({built("good")}).libraries()[0]);
}

TEST_CASE("what a plugin says while it starts goes to whoever searches") {
  std::string heard;
  Context context;
  context.log = [&](LogLevel, std::string_view component, std::string_view message) {
    heard += std::string(component) + ": " + std::string(message) + ";";
  };
  const auto plugins = find({built("good")}, {}, context);
  // Silent when another test of this process started it before.
  CHECK((heard == "org.graft.test.good: good morning;" || heard.empty()));
}

TEST_CASE("what hears of a plugin that starts may use graft") {
  std::string reason = "silent";  // when another test of this process started it before
  Context context;
  context.log = [&](LogLevel, std::string_view, std::string_view) {
    reason = find({built("good")}).verdicts().at(0).reason;
  };
  CHECK(find({built("good")}, {}, context).libraries().size() == 1);
  CHECK((reason == "silent" || contains(reason, "another plugin is just starting")));
}

TEST_CASE("claims, summary and registry file of a loaded plugin are there to read") {
  const auto plugins = find({built("good")});
  const auto& library = *plugins.libraries().at(0);
  CHECK(library.version() == "1.0.0");
  CHECK(library.summary() == "int8 rows, the least that a method can be");
  REQUIRE(library.claims().size() == 1);
  CHECK(std::string(library.claims()[0].method) == "rows8");
  CHECK_FALSE(library.registry_file().has_value());
  CHECK(library.quantizer("rows8") != nullptr);
  CHECK(library.quantizer("nonsense") == nullptr);
  CHECK(library.query("no.such.interface/1", "") == nullptr);
}

TEST_CASE("folders are searched sorted and not deeper, and an unreadable one is a verdict") {
  const TemporaryFolder folder;
  folder.write("b.so", "no");
  folder.write("a.so", "no");
  folder.write("c.txt", "no");
  folder.write("deeper/d.so", "no");
  const auto plugins = find({}, {folder.path(), folder.path() / "absent"});
  REQUIRE(plugins.verdicts().size() == 3);
  CHECK(plugins.verdicts()[0].file.filename() == "a.so");
  CHECK(plugins.verdicts()[1].file.filename() == "b.so");
  CHECK(contains(plugins.verdicts()[2].reason, "cannot be searched: No such file or directory"));
}

TEST_CASE(
    "GRAFT_PLUGIN_PATH names folders, and what would mean the current directory is passed over") {
  const TemporaryFolder folder;
  folder.write("x.so", "no");
  const auto here = fs::current_path();
  fs::current_path(folder.path());
  ::setenv("GRAFT_PLUGIN_PATH", ("::.:" + (folder.path() / "sub").string()).c_str(), 1);
  folder.write("sub/y.so", "no");
  const auto plugins = Plugins::find(PluginSearch{});
  ::unsetenv("GRAFT_PLUGIN_PATH");
  fs::current_path(here);
  REQUIRE_FALSE(plugins.verdicts().empty());
  CHECK(plugins.verdicts()[0].file == folder.path() / "sub" / "y.so");
  for (const auto& verdict : plugins.verdicts()) CHECK(verdict.file.filename() != "x.so");
}

TEST_CASE("a file that is replaced after it was loaded is refused, not mixed up") {
  const TemporaryFolder folder;
  const auto file = folder.path() / "libx.so";
  fs::copy_file(built("refused"), file);
  CHECK(contains(find({file}).verdicts()[0].reason, "declined"));
  std::string changed = test::read_file(file);
  const auto version = changed.find("1.2.3");
  REQUIRE(version != std::string::npos);
  changed[version] = '7';
  // Written into the very file, so that device and inode stay.
  std::fstream(file, std::ios::in | std::ios::out | std::ios::binary) << changed;
  CHECK(contains(find({file}).verdicts()[0].reason,
                 "the file was replaced after this process had loaded it; start again"));
}

TEST_CASE("two hosts share a library and neither ends it") {
  HostOptions options;
  options.plugin_files = {built("good")};
  auto first = std::make_unique<Host>(options);
  const Host second(options);
  CHECK(first->plugins().libraries()[0] == second.plugins().libraries()[0]);
  const Quantizer* quantizer = second.plugins().libraries()[0]->quantizer("rows8");
  first.reset();
  CHECK(second.plugins().libraries()[0]->quantizer("rows8") == quantizer);
}
