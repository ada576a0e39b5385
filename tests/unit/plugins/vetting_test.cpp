// What is refused before a byte of a file runs: checks 1 to 7 of docs/design.md.

#include <elf.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>

#include "graft/error.h"
#include "graft/host.h"
#include "graft/plugins.h"
#include "graft/stamp.h"
#include "plugins/vetting.h"

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

/// A plugin that could be loaded and tells when it runs; what a test makes wrong in it is all that
/// is wrong up to check 7.
std::string loadable() { return test::read_file(built("no_quantizer")); }

graft_stamp& stamp_in(std::string& file) {
  const std::string_view name("\x01\0\0\0graft\0\0\0", 12);
  const auto at = file.find(name);
  REQUIRE(at != std::string::npos);
  return *reinterpret_cast<graft_stamp*>(file.data() + at + name.size());
}

Elf64_Ehdr& header_of(std::string& file) { return *reinterpret_cast<Elf64_Ehdr*>(file.data()); }

/// Searches one folder with one file in it, and knows whether the file ran.
struct Trial {
  Trial() : marker(folder.path() / "ran") { ::setenv("GRAFT_TEST_MARKER", marker.c_str(), 1); }
  ~Trial() { ::unsetenv("GRAFT_TEST_MARKER"); }

  PluginVerdict verdict(bool allow_insecure = false) const {
    PluginSearch search;
    search.directories = {folder.path() / "plugins"};
    search.use_default_path = false;
    search.allow_insecure = allow_insecure;
    const auto plugins = Plugins::find(search);
    REQUIRE(plugins.verdicts().size() == 1);
    return plugins.verdicts().front();
  }
  PluginVerdict verdict_on(std::string_view content) const {
    folder.write("plugins/libx.so", content);
    return verdict();
  }
  bool ran() const { return fs::exists(marker); }

  TemporaryFolder folder;
  fs::path marker;
};

void check_refused(std::string_view content, const std::string& sentence) {
  const Trial trial;
  const auto verdict = trial.verdict_on(content);
  CHECK_FALSE(verdict.loaded);
  CHECK(contains(verdict.reason, sentence));
  CHECK_FALSE(trial.ran());
}

template <class Forge>
void check_forged(Forge forge, const std::string& sentence) {
  std::string file = loadable();
  forge(file);
  check_refused(file, sentence);
}

}  // namespace

TEST_CASE("the marker shows that a plugin which passes checks 1 to 7 does run its constructors") {
  const Trial trial;
  const auto verdict = trial.verdict_on(loadable());
  CHECK(trial.ran());
  CHECK(contains(verdict.reason, "has no quantizer for it"));
}

TEST_CASE("a file that is no ELF file is refused unrun") {
  check_refused("", "not an ELF file, expected a shared library");
  check_refused("\x7f", "not an ELF file, expected a shared library");
  check_refused("#!/bin/sh\ntouch /tmp/x\n", "not an ELF file, expected a shared library");
  check_refused("MZ\x90", "a Windows library, expected an ELF one");
}

TEST_CASE("a library for another machine or word size is refused unrun") {
  check_forged([](std::string& f) { header_of(f).e_machine = EM_RISCV; },
               "built for RISC-V, this host runs on");
  check_forged([](std::string& f) { header_of(f).e_machine = 62000; },
               "built for ELF machine 62000, this host runs on");
  check_forged([](std::string& f) { f[EI_CLASS] = ELFCLASS32; }, "not a 64-bit");
  check_forged([](std::string& f) { f[EI_DATA] = ELFDATA2MSB; }, "little-endian");
  check_forged([](std::string& f) { header_of(f).e_type = ET_EXEC; },
               "ELF type 2, expected a shared library (type 3)");
}

TEST_CASE("a truncated library is refused unrun, wherever it is cut") {
  const std::string whole = loadable();
  for (std::size_t size = 1; size < whole.size(); size += 1 + whole.size() / 61) {
    CAPTURE(size);
    const Trial trial;
    const auto verdict = trial.verdict_on(std::string_view(whole).substr(0, size));
    CHECK_FALSE(verdict.loaded);
    CHECK_MESSAGE(
        (verdict.reason.starts_with("damaged") || verdict.reason.starts_with("not an ELF")),
        verdict.reason);
    CHECK_FALSE(trial.ran());
  }
}

TEST_CASE("damaged ELF tables are refused unrun and cost no memory") {
  check_forged([](std::string& f) { header_of(f).e_phnum = 0xffff; },
               "it has 65535 program headers, at most 1024 are read");
  check_forged([](std::string& f) { header_of(f).e_phoff = ~Elf64_Off{0} - 8; },
               "its program headers are cut off");
  check_forged([](std::string& f) { header_of(f).e_phentsize = 1; },
               "its program headers are 1 bytes each, expected 56");
  const auto segment = [](std::string& f, Elf64_Word type) -> Elf64_Phdr& {
    auto* all = reinterpret_cast<Elf64_Phdr*>(f.data() + header_of(f).e_phoff);
    for (unsigned i = 0; i < header_of(f).e_phnum; ++i)
      if (all[i].p_type == type) return all[i];
    FAIL("no such segment");
    return all[0];
  };
  check_forged([&](std::string& f) { segment(f, PT_NOTE).p_filesz = std::uint64_t{1} << 62; },
               "damaged: segment ");
  check_forged([&](std::string& f) { segment(f, PT_LOAD).p_offset = ~std::uint64_t{0}; },
               "damaged: segment ");
  // What PT_GNU_RELRO covers is memory: strip leaves files that end before.
  std::string stripped = loadable();
  segment(stripped, PT_GNU_RELRO).p_filesz += stripped.size();
  CHECK_FALSE(Trial().verdict_on(stripped).reason.starts_with("damaged"));
  std::string padded = loadable();
  padded.append(100'000, '\0');
  segment(padded, PT_NOTE).p_offset = padded.size() - 70'000;
  segment(padded, PT_NOTE).p_filesz = 70'000;
  check_refused(padded, "it has more than 65536 bytes of notes");
}

TEST_CASE("a library without a stamp is refused unrun") {
  check_refused(test::read_file(built("no_stamp")), "no graft stamp, so not a graft plugin");
  check_forged([](std::string& f) { reinterpret_cast<char*>(&stamp_in(f))[-8] = 'G'; },
               "no graft stamp");
}

TEST_CASE("a short stamp is refused unrun") {
  check_forged([](std::string& f) { stamp_in(f).size = 100; },
               "a stamp of 100 bytes, expected at least 152; rebuild it with this graft");
  check_forged(
      [](std::string& f) {
        const std::uint32_t payload = 64;
        std::memcpy(reinterpret_cast<char*>(&stamp_in(f)) - 16, &payload, 4);
      },
      "a stamp of 64 bytes, expected at least 152");
}

TEST_CASE("text in a stamp that could mislead is refused unrun") {
  check_forged([](std::string& f) { std::memset(stamp_in(f).id, 'a', sizeof(graft_stamp::id)); },
               "damaged: the id in its stamp");
  check_forged([](std::string& f) { std::strcpy(stamp_in(f).id, "org\x1b[31m"); },
               "damaged: the id in its stamp is not made of letters, digits and .-_");
  check_forged([](std::string& f) { stamp_in(f).id[0] = 0; }, "damaged: the id in its stamp");
  check_forged([](std::string& f) { std::strcpy(stamp_in(f).version, "1 0"); },
               "damaged: the version in its stamp is not a version");
  check_forged([](std::string& f) { stamp_in(f).torch[0] = '\n'; },
               "damaged: the torch version in its stamp is not a version");
}

TEST_CASE("another plugin ABI is refused unrun, with both versions") {
  check_forged([](std::string& f) { stamp_in(f).abi_major = 2; },
               "built for plugin ABI 2.0, this host speaks 1.0; rebuild it with this graft");
  check_forged([](std::string& f) { stamp_in(f).abi_major = 0; }, "built for plugin ABI 0.0");
  check_forged([](std::string& f) { stamp_in(f).abi_minor = 7; },
               "built for plugin ABI 1.7, this host speaks up to 1.0; update graft");
}

TEST_CASE("another torch is refused unrun, with both versions") {
  check_forged([](std::string& f) { std::strcpy(stamp_in(f).torch, "2.1.0"); },
               "built for torch 2.1.0, this host runs 2.");
  check_forged([](std::string& f) { std::strcpy(stamp_in(f).torch, "3"); }, "built for torch 3,");
}

TEST_CASE("a patch release of the same torch is taken") {
  std::string file = loadable();
  const std::string_view torch = stamp_in(file).torch;
  const std::string patched(torch.substr(0, torch.rfind('.')));
  std::strcpy(stamp_in(file).torch, (patched + ".99+cpu").c_str());
  const Trial trial;
  CHECK(contains(trial.verdict_on(file).reason, "has no quantizer for it"));  // check 10
}

TEST_CASE("another sanitizer is refused unrun") {
  check_forged([](std::string& f) { stamp_in(f).sanitizers ^= GRAFT_SAN_ADDRESS; },
               "build both from one preset");
  check_forged([](std::string& f) { stamp_in(f).sanitizers = GRAFT_SAN_THREAD; },
               "built with the thread sanitizer, this host with ");
}

TEST_CASE("another C++ world is refused unrun, whatever differs") {
  check_forged([](std::string& f) { stamp_in(f).stdlib = GRAFT_STDLIB_LIBCXX; },
               "built with libc++, this host with libstdc++; rebuild it with the compiler");
  check_forged([](std::string& f) { stamp_in(f).cxx11_abi ^= 1; },
               "built with _GLIBCXX_USE_CXX11_ABI=0, this host with _GLIBCXX_USE_CXX11_ABI=1");
  check_forged([](std::string& f) { stamp_in(f).gxx_abi = 2018; },
               "built with a compiler of ABI 2018, this host with one of ABI 1");
  check_forged([](std::string& f) { stamp_in(f).debug_stl ^= 1; }, "_GLIBCXX_DEBUG");
}

TEST_CASE("another CUDA is refused when both sides have one") {
  const graft_stamp none = stamp_of_this_build("", "");
  graft_stamp twelve = none, other_twelve = none, thirteen = none;
  twelve.cuda = 12040;
  other_twelve.cuda = 12080;
  thirteen.cuda = 13000;
  CHECK_FALSE(compare(twelve, other_twelve));
  CHECK_FALSE(compare(thirteen, none));  // a CPU torch takes plugins with CUDA inside
  CHECK_FALSE(compare(none, thirteen));
  const auto refusal = compare(thirteen, twelve);
  REQUIRE(refusal);
  CHECK(refusal->reason ==
        "built for CUDA 13, this host runs CUDA 12; rebuild it with the CUDA version of this "
        "host's torch");
}

TEST_CASE("what others may write to is refused unrun, and --allow-insecure-plugins takes it") {
  Trial trial;
  const auto file = trial.folder.write("plugins/libx.so", loadable());
  ::chmod(file.c_str(), 0666);
  CHECK(contains(trial.verdict().reason,
                 "the file can be written by everyone (mode 0666), expected by its owner alone; "
                 "chmod o-w it or pass --allow-insecure-plugins"));
  ::chmod(file.c_str(), 0644);
  ::chmod(file.parent_path().c_str(), 0777);
  CHECK(contains(trial.verdict().reason, "its folder '"));
  CHECK(contains(trial.verdict().reason, "can be written by everyone (mode 0777)"));
  CHECK_FALSE(trial.ran());
  CHECK(contains(trial.verdict(/*allow_insecure=*/true).reason, "has no quantizer for it"));
  CHECK(trial.ran());
}

TEST_CASE("a file of another user is refused unrun") {
  if (::geteuid() != 0) return;  // only root can make one
  Trial trial;
  const auto file = trial.folder.write("plugins/libx.so", loadable());
  REQUIRE(::chown(file.c_str(), 12345, 0) == 0);
  CHECK(contains(trial.verdict().reason,
                 "the file belongs to user 12345, expected root or user 0; change its owner"));
  CHECK_FALSE(trial.ran());
}

TEST_CASE("a FIFO, a folder and a dangling link are refused without waiting") {
  Trial trial;
  const auto folder = trial.folder.path() / "plugins";
  fs::create_directory(folder);
  REQUIRE(::mkfifo((folder / "libx.so").c_str(), 0600) == 0);
  CHECK(contains(trial.verdict().reason, "not a regular file, expected a shared library"));
  fs::remove(folder / "libx.so");
  fs::create_directory(folder / "libx.so");
  CHECK(contains(trial.verdict().reason, "not a regular file, expected a shared library"));
  fs::remove(folder / "libx.so");
  fs::create_symlink("libx.so", folder / "libx.so");
  CHECK(contains(trial.verdict().reason, "cannot be opened: Too many levels of symbolic links"));
  fs::remove(folder / "libx.so");
  fs::create_symlink("nowhere", folder / "libx.so");
  CHECK(contains(trial.verdict().reason, "cannot be opened: No such file or directory"));
}

TEST_CASE("read_stamp tells what a file says of itself and runs nothing") {
  const Trial trial;
  const graft_stamp stamp = read_stamp(built("null_entry"));
  CHECK(std::string(stamp.id) == "org.graft.test.null_entry");
  CHECK(std::string(stamp.version) == "1.2.3");
  CHECK_FALSE(trial.ran());
  const auto error = test::thrown_by([] { read_stamp(built("no_stamp")); });
  CHECK(error.kind() == ErrorKind::plugin);
  CHECK(contains(error.what(), "libgraft_test_no_stamp.so': no graft stamp"));
  CHECK(test::thrown_by([] { read_stamp("/nowhere/x.so"); }).kind() == ErrorKind::resource);
}
