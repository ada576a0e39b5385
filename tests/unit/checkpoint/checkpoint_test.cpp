#include "graft/checkpoint.h"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <thread>

#include "graft/error.h"

#include "temporary_folder.h"
#include "thrown_by.h"
#include "tiny_safetensors.h"

using namespace graft;
using test::contains;
using test::entry;
using test::safetensors;
using test::TemporaryFolder;
namespace fs = std::filesystem;

namespace {

const std::string kA = safetensors("{" + entry("a", "[1]", "[0,4]") + "}", 4);
const std::string kB = safetensors("{" + entry("b", "[1]", "[0,4]") + "}", 4);

std::string index(const std::string& map) { return "{\"weight_map\":{" + map + "}}"; }

/// A folder with config.json and these files.
struct Folder : TemporaryFolder {
  explicit Folder(const std::vector<std::pair<std::string, std::string>>& files) {
    write("config.json", "{}");
    for (const auto& [name, content] : files) write(name, content);
  }
};

std::string refused_at(const fs::path& folder, ErrorKind kind = ErrorKind::model) {
  const auto error = test::thrown_by([&] { Checkpoint::open(folder); });
  CHECK(error.kind() == kind);
  CHECK(contains(error.what(), "; "));  // behind it stands what to do
  return error.what();
}

std::string refused(const std::vector<std::pair<std::string, std::string>>& files) {
  const Folder folder(files);
  return refused_at(folder.path());
}

constexpr const char* kIndex = "model.safetensors.index.json";

}  // namespace

TEST_CASE("two shards and their index are one checkpoint, in natural order") {
  const Folder folder({{"s1.safetensors", kB},
                       {"s2.safetensors", kA},
                       {kIndex, index("\"a\":\"s2.safetensors\",\"b\":\"s1.safetensors\"")}});
  const auto checkpoint = Checkpoint::open(folder.path());
  REQUIRE(checkpoint.tensors().size() == 2);
  CHECK(checkpoint.tensors()[0].name == "a");
  CHECK(checkpoint.shards().size() == 2);
  CHECK(checkpoint.total_bytes() == 8);
  CHECK(checkpoint.find("c") == nullptr);
  CHECK(contains(test::message_of([&] { checkpoint.at("aa"); }), "the nearest names are 'a'"));
}

TEST_CASE("all shards that are missing are listed") {
  const auto text = refused({{"s1.safetensors", kA},
                             {kIndex, index("\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\","
                                            "\"c\":\"s10.safetensors\"")}});
  CHECK(contains(text,
                 "model.safetensors.index.json: shards are missing: expected 3 shards, found all "
                 "but 's2.safetensors', 's10.safetensors'; download them"));
}

TEST_CASE("an index may name files beside it only") {
  for (const std::string shard : {"/etc/passwd", "../x.safetensors", "a/b.safetensors", "..", "",
                                  "a\\\\b.safetensors", "a\\u0000b"}) {
    CAPTURE(shard);
    CHECK(contains(
        refused({{"s.safetensors", kA}, {kIndex, index("\"a\":\"" + shard + "\"")}}),
        "tensor 'a': the shard lies outside the model's folder: expected the name of a file "
        "beside the index"));
  }
}

TEST_CASE("a tensor in two shards is refused, naming both") {
  const auto text = refused(
      {{"s1.safetensors", kA},
       {"s2.safetensors",
        safetensors("{" + entry("a", "[1]", "[0,4]") + "," + entry("b", "[1]", "[4,8]") + "}", 8)},
       {kIndex, index("\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\"")}});
  CHECK(contains(text,
                 "tensor 'a': the tensor is in two shards: found 's1.safetensors' and "
                 "'s2.safetensors'"));
}

TEST_CASE("an index that does not fit its shards is refused: the real headers count") {
  CHECK(contains(
      refused({{"s.safetensors",
                safetensors(
                    "{" + entry("a", "[1]", "[0,4]") + "," + entry("b", "[1]", "[4,8]") + "}", 8)},
               {kIndex, index("\"a\":\"s.safetensors\"")}}),
      "tensor 'b': the tensor is missing from the index: found it in 's.safetensors'; the "
      "index does not belong to these shards"));
  CHECK(contains(refused({{"s.safetensors", kA},
                          {kIndex, index("\"a\":\"s.safetensors\",\"c\":\"s.safetensors\"")}}),
                 "tensor 'c': the tensor is not where the index says: expected it in "
                 "'s.safetensors', found it in no shard"));
  CHECK(contains(refused({{"s1.safetensors", kA},
                          {"s2.safetensors", kB},
                          {kIndex, index("\"a\":\"s2.safetensors\",\"b\":\"s2.safetensors\","
                                         "\"x\":\"s1.safetensors\"")}}),
                 "is not where the index says"));
}

TEST_CASE("a broken index is refused") {
  CHECK(contains(refused({{"s.safetensors", kA}, {kIndex, "{}"}}),
                 "the field 'weight_map' is missing"));
  CHECK(contains(refused({{"s.safetensors", kA},
                          {kIndex, index("\"a\":\"s.safetensors\",\"a\":\"s.safetensors\"")}}),
                 "tensor 'a': the tensor occurs twice in the index"));
  CHECK(contains(refused({{"s.safetensors", kA}, {kIndex, index("\"a\":1")}}),
                 "tensor 'a': wrong value: expected the name of a shard, found 1"));
  CHECK(contains(refused({{"s.safetensors", kA}, {kIndex, "[]"}}),
                 "expected an object, found a list"));
  CHECK(contains(refused({{"s.safetensors", kA}, {kIndex, "\xEF\xBB\xBF{}"}}), "byte order mark"));
  CHECK(contains(refused({{"s.safetensors", kA}, {kIndex, "{"}}), "not valid JSON"));
  CHECK(contains(refused({{"s.safetensors", kA}, {kIndex, "{\"weight_map\":{},\"more\":1}"}}),
                 "unknown field 'more'"));
}

TEST_CASE("metadata of an index is passed over, whatever it holds") {
  const Folder folder(
      {{"s.safetensors", kA},
       {kIndex,
        R"({"metadata":{"total_size":4.0,"x":[1,{"y":null}]},
         "weight_map":{"a":"s.safetensors"}})"}});
  CHECK(Checkpoint::open(folder.path()).tensors().size() == 1);
  const Folder plain(
      {{"s.safetensors", kA}, {kIndex, R"({"metadata":null,"weight_map":{"a":"s.safetensors"}})"}});
  CHECK(Checkpoint::open(plain.path()).tensors().size() == 1);
}

TEST_CASE("a shard that links to itself is refused with the system's words") {
  const Folder folder({});
  fs::create_symlink("model.safetensors", folder.path() / "model.safetensors");
  CHECK(contains(refused_at(folder.path()),
                 "cannot open the file: Too many levels of symbolic links"));
  const Folder loop({});
  fs::create_symlink("other", loop.path() / "model.safetensors");
  fs::create_symlink("model.safetensors", loop.path() / "other");
  CHECK(contains(refused_at(loop.path()),
                 "model.safetensors: cannot open the file: Too many levels of symbolic links"));
}

TEST_CASE("a shard that is no regular file is refused without waiting for it") {
  const auto why = [](auto make) {
    const Folder folder({});
    make(folder.path() / "model.safetensors");
    return refused_at(folder.path());
  };
  CHECK(contains(why([](const fs::path& p) { fs::create_directory(p); }),
                 "this is not a regular file: expected a file, found a folder"));
  CHECK(contains(why([](const fs::path& p) { REQUIRE(::mkfifo(p.c_str(), 0600) == 0); }),
                 "found a pipe"));
  CHECK(contains(why([](const fs::path& p) { fs::create_symlink("/dev/zero", p); }),
                 "found a device"));
  CHECK(contains(why([](const fs::path& p) { fs::create_symlink("/dev/null", p); }),
                 "found a device"));
  // Standard input is a pipe that nobody writes to while this is tried.
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const int stdin_before = ::dup(STDIN_FILENO);
  ::dup2(ends[0], STDIN_FILENO);
  CHECK(contains(why([](const fs::path& p) { fs::create_symlink("/dev/stdin", p); }),
                 "found a pipe"));
  ::dup2(stdin_before, STDIN_FILENO);
  for (const int fd : {ends[0], ends[1], stdin_before}) ::close(fd);
}

TEST_CASE("a file that is cut or changed after it was opened is an error, not a signal") {
  const TemporaryFolder folder;
  const auto file = folder.write(
      "m.safetensors", safetensors("{" + entry("a", "[25000]", "[0,100000]") + "}", 100'000));
  const auto checkpoint = Checkpoint::open_file(file);
  std::vector<char> out(100'000);
  checkpoint.read(checkpoint.at("a"), out.data());
  const auto size = fs::file_size(file);
  fs::resize_file(file, size / 2);
  CHECK(contains(test::message_of([&] { checkpoint.read(checkpoint.at("a"), out.data()); }),
                 "m.safetensors: the file was changed after it was opened: expected " +
                     std::to_string(size) + " bytes, found " + std::to_string(size / 2) +
                     "; start again when nothing writes to it"));
  CHECK(contains(test::message_of([&] { checkpoint.read(checkpoint.at("a"), out.data()); }),
                 "tensor 'a': "));
  fs::resize_file(file, size);
  CHECK(contains(test::message_of([&] { checkpoint.read(checkpoint.at("a"), out.data()); }),
                 "found " + std::to_string(size) + " with a new modification time"));
}

TEST_CASE("a file that is replaced leaves the open one readable, and fingerprints tell") {
  const TemporaryFolder folder;
  const auto file = folder.write("m.safetensors", kA);
  const auto before = Checkpoint::open_file(file);
  const auto next = folder.write("next", kA);
  fs::rename(next, file);
  std::array<char, 4> out{};
  before.read(before.at("a"), out.data());
  CHECK(out[1] == 1);
  CHECK(before.fingerprint() != Checkpoint::open_file(file).fingerprint());
  CHECK(Checkpoint::open_file(file).fingerprint() == Checkpoint::open_file(file).fingerprint());
}

TEST_CASE("a folder of pickles is refused with the way to convert it") {
  CHECK(contains(refused({{"pytorch_model.bin", "x"}}),
                 "pickle is not read, because reading it can run code: expected model.safetensors, "
                 "found 'pytorch_model.bin'; convert with Transformers"));
  CHECK(contains(refused({{"model.pt", "x"}}), "found 'model.pt'; convert with Transformers"));
  CHECK(contains(refused({{"model.gguf", "x"}}), "`graft import`"));
}

TEST_CASE("a folder without weights is refused unless that is asked for") {
  const Folder folder({});
  CHECK(
      contains(refused_at(folder.path()), "the folder has no weights: expected model.safetensors"));
  OpenOptions optional;
  optional.weights_optional = true;
  CHECK(Checkpoint::open(folder.path(), optional).tensors().empty());
}

TEST_CASE("what files mean is never guessed") {
  CHECK(contains(refused({{"x.safetensors", kA}, {"y.safetensors", kB}}),
                 "several safetensors files but no index: expected model.safetensors.index.json"));
  CHECK(contains(refused({{"model.safetensors", kA},
                          {"s.safetensors", kB},
                          {kIndex, index("\"b\":\"s.safetensors\"")}}),
                 "model.safetensors lies beside an index that does not name it"));
  const Folder only({{"odd name.safetensors", kA}});
  CHECK(Checkpoint::open(only.path()).tensors().size() == 1);
}

TEST_CASE("config.json must be there and be a sound JSON object") {
  const auto with_config = [](std::string_view text) {
    const Folder folder({{"model.safetensors", kA}});
    folder.write("config.json", text);
    return refused_at(folder.path());
  };
  CHECK(contains(with_config("[]"),
                 "config.json: line 1: the config has the wrong form: expected an "
                 "object, found list"));
  CHECK(contains(with_config("{\n\"a\": 1,\n}"), "config.json: line 3"));
  CHECK(contains(with_config("\xEF\xBB\xBF{}"), "config.json"));
  CHECK(contains(with_config(""), "config.json"));
  CHECK(contains(with_config("{\"a\":1,\"a\":2}"), "'a'"));
  CHECK(contains(with_config(std::string(100'000, '[')), "nested deeper than 64 levels"));
  CHECK(contains(
      with_config(std::string(10 << 20, ' ')),
      "config.json: the file is too large: expected at most 8388608 bytes, found 10485760"));
  const TemporaryFolder empty;
  CHECK(contains(refused_at(empty.path()),
                 "config.json is missing; give the folder of a Hugging Face model"));
  CHECK(contains(refused_at(empty.path() / "absent"),
                 "cannot read the folder: No such file or directory"));
}

TEST_CASE("file names with spaces, quotes and bytes that are no UTF-8 work") {
  const TemporaryFolder folder;
  const auto odd = folder.path() / "a b'\"\xff-";
  fs::create_directory(odd);
  std::ofstream(odd / "config.json") << "{}";
  std::ofstream(odd / "model.safetensors", std::ios::binary) << kA;
  CHECK(Checkpoint::open(odd).tensors().size() == 1);
}

TEST_CASE("a range outside the tensor, and a tensor of another checkpoint, are refused") {
  const TemporaryFolder folder;
  const auto checkpoint = Checkpoint::open_file(folder.write("m.safetensors", kA));
  std::array<char, 64> out{};
  const auto& info = checkpoint.at("a");
  CHECK(contains(
      test::message_of([&] { checkpoint.read(info, 1, 4, out.data()); }),
      "the range lies outside the tensor: expected at most 4 bytes, found 4 bytes from 1"));
  CHECK_THROWS_AS(checkpoint.read(info, ~std::uint64_t{0}, 4, out.data()), Error);
  auto foreign = info;
  foreign.shard = 9;
  CHECK(contains(test::message_of([&] { checkpoint.read(foreign, out.data()); }),
                 "the tensor is not one of this checkpoint"));
}

TEST_CASE("threads read one checkpoint together") {
  const TemporaryFolder folder;
  const auto checkpoint = Checkpoint::open_file(folder.write(
      "m.safetensors", safetensors("{" + entry("a", "[25000]", "[0,100000]") + "}", 100'000)));
  std::vector<std::thread> threads;
  std::array<std::vector<char>, 4> out;
  for (auto& mine : out)
    threads.emplace_back([&] {
      mine.resize(100'000);
      for (int i = 0; i < 20; ++i) checkpoint.read(checkpoint.at("a"), mine.data());
    });
  for (auto& thread : threads) thread.join();
  for (const auto& mine : out) CHECK(mine == out[0]);
}

TEST_CASE("a mapped tensor stays while somebody holds it") {
  const TemporaryFolder folder;
  std::shared_ptr<const void> held;
  {
    const auto checkpoint = Checkpoint::open_file(folder.write("m.safetensors", kA));
    held = checkpoint.map(checkpoint.at("a"));
  }
  CHECK(static_cast<const char*>(held.get())[2] == 2);
}
