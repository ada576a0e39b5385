#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "graft/checkpoint.h"
#include "graft/error.h"

#include "temporary_folder.h"
#include "thrown_by.h"

using namespace graft;
using test::contains;
using test::TemporaryFolder;
namespace fs = std::filesystem;

namespace {

TensorToWrite tensor(const std::string& name, Dtype dtype, std::int64_t count, char fill) {
  return {name, dtype, {count}, [=] {
            auto bytes = std::make_shared<std::string>(
                static_cast<std::size_t>(count) * size_of(dtype), fill);
            return std::shared_ptr<const void>(bytes, bytes->data());
          }};
}

/// A complete model with one tensor of this fill.
void write_model(const fs::path& folder, char fill, WriteOptions options = {}) {
  FolderWriter writer(folder, std::move(options));
  writer.write_text("config.json", "{}");
  writer.write_tensors({tensor("a", Dtype::U8, 100, fill)});
  writer.commit();
}

char fill_of(const fs::path& folder) {
  const auto checkpoint = Checkpoint::open(folder);
  char out = 0;
  checkpoint.read(checkpoint.at("a"), 0, 1, &out);
  return out;
}

/// Names in a folder, hidden ones too.
std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

using Names = std::vector<std::string>;

std::string refused(ErrorKind kind, const fs::path& folder, const WriteOptions& options = {},
                    const std::vector<fs::path>& inputs = {}) {
  const auto error = test::thrown_by([&] { const FolderWriter writer(folder, options, inputs); });
  CHECK(error.kind() == kind);
  return error.what();
}

}  // namespace

TEST_CASE("what is written reads back, aligned, in the order of Transformers' files") {
  const TemporaryFolder temporary;
  const auto out = temporary.path() / "out";
  FolderWriter writer(out, {});
  writer.write_text("config.json", "{\"x\": 1}");
  writer.write_tensors({tensor("odd", Dtype::U8, 3, 'o'), tensor("wide", Dtype::F64, 2, 'w'),
                        tensor("half", Dtype::F16, 5, 'h'), tensor("empty", Dtype::F32, 0, 'e')});
  writer.commit();
  CHECK(names_in(temporary.path()) == Names{"out"});
  CHECK(names_in(out) == Names{"config.json", "model.safetensors"});
  const auto checkpoint = Checkpoint::open(out);
  CHECK(checkpoint.config().at("x").as_int() == 1);
  REQUIRE(checkpoint.tensors().size() == 4);
  for (const auto& info : checkpoint.tensors()) {
    CAPTURE(info.name);
    CHECK(info.offset % size_of(info.dtype) == 0);
    std::string bytes(info.bytes, '\0');
    checkpoint.read(info, bytes.data());
    CHECK(bytes == std::string(info.bytes, info.name[0]));
  }
  CHECK(contains(test::read_file(out / "model.safetensors"), R"("__metadata__":{"format":"pt"})"));
}

TEST_CASE("shards are cut where the next tensor would not fit, and the index names them all") {
  const TemporaryFolder temporary;
  WriteOptions options;
  options.shard_bytes = 100;
  FolderWriter writer(temporary.path() / "out", options);
  writer.write_text("config.json", "{}");
  writer.write_tensors({tensor("a", Dtype::U8, 60, 'a'), tensor("b", Dtype::U8, 40, 'b'),
                        tensor("c", Dtype::U8, 1, 'c'), tensor("d", Dtype::U8, 250, 'd'),
                        tensor("e", Dtype::U8, 10, 'e')});
  writer.commit();
  CHECK(names_in(temporary.path() / "out") ==
        Names{"config.json", "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors",
              "model-00003-of-00004.safetensors", "model-00004-of-00004.safetensors",
              "model.safetensors.index.json"});
  const auto checkpoint = Checkpoint::open(temporary.path() / "out");
  CHECK(checkpoint.at("a").shard == 0);
  CHECK(checkpoint.at("b").shard == 0);
  CHECK(checkpoint.at("c").shard == 1);
  CHECK(checkpoint.at("d").shard == 2);
  CHECK(checkpoint.at("e").shard == 3);
  CHECK(contains(test::read_file(temporary.path() / "out" / "model.safetensors.index.json"),
                 "\"total_size\": 361"));
}

TEST_CASE("same tensors, same bytes") {
  const TemporaryFolder temporary;
  write_model(temporary.path() / "one", 'x');
  write_model(temporary.path() / "two", 'x');
  CHECK(test::read_file(temporary.path() / "one" / "model.safetensors") ==
        test::read_file(temporary.path() / "two" / "model.safetensors"));
}

TEST_CASE("without commit nothing is left, whatever was written") {
  const TemporaryFolder temporary;
  {
    FolderWriter writer(temporary.path() / "out", {});
    writer.write_text("config.json", "{}");
    writer.write_tensors({tensor("a", Dtype::U8, 10, 'a')});
    CHECK_FALSE(fs::exists(temporary.path() / "out"));
  }
  CHECK(names_in(temporary.path()).empty());
}

TEST_CASE("an output that is not empty is refused unless it is to be overwritten") {
  const TemporaryFolder temporary;
  const auto out = temporary.path() / "out";
  write_model(out, '1');
  CHECK(contains(refused(ErrorKind::usage, out),
                 "out: the output folder is not empty; choose another one, or replace it with "
                 "--overwrite"));
  WriteOptions overwrite;
  overwrite.overwrite = true;
  {
    FolderWriter unfinished(out, overwrite);
    unfinished.write_text("config.json", "{}");
  }
  CHECK(fill_of(out) == '1');
  write_model(out, '2', overwrite);
  CHECK(fill_of(out) == '2');
  CHECK(names_in(temporary.path()) == Names{"out"});
}

TEST_CASE("an empty folder is taken, a folder of something else is never overwritten") {
  const TemporaryFolder temporary;
  fs::create_directory(temporary.path() / "empty");
  write_model(temporary.path() / "empty", '1');
  CHECK(fill_of(temporary.path() / "empty") == '1');
  temporary.write("photos/cat.jpg", "meow");
  WriteOptions overwrite;
  overwrite.overwrite = true;
  CHECK(contains(refused(ErrorKind::usage, temporary.path() / "photos", overwrite),
                 "the output folder is not empty and holds no model"));
  temporary.write("file", "x");
  CHECK(contains(refused(ErrorKind::usage, temporary.path() / "file", overwrite),
                 "the output exists and is not a folder"));
  CHECK(contains(refused(ErrorKind::usage, temporary.path() / "no" / "out"),
                 "the folder for the output does not exist"));
  CHECK(contains(refused(ErrorKind::usage, ""), "the output folder needs a name"));
}

TEST_CASE("a folder with more than a model in it is never overwritten, one with its modules is") {
  const TemporaryFolder temporary;
  WriteOptions overwrite;
  overwrite.overwrite = true;
  temporary.write("project/config.json", "{}");
  temporary.write("project/src/main.js", "1");
  const auto text = refused(ErrorKind::usage, temporary.path() / "project", overwrite);
  CHECK(contains(text, "holds more than a model"));
  CHECK(contains(text, "found the folder 'src'"));
  CHECK(fs::exists(temporary.path() / "project/src/main.js"));
  temporary.write("encoder/config.json", "{}");
  temporary.write("encoder/1_Pooling/config.json", "{}");
  CHECK(contains(refused(ErrorKind::usage, temporary.path() / "encoder", overwrite),
                 "found the folder '1_Pooling'"));  // nothing says that it is a module's
  temporary.write("encoder/modules.json", R"([{"path": "1_Pooling"}])");
  write_model(temporary.path() / "encoder", '1', overwrite);
  CHECK(fill_of(temporary.path() / "encoder") == '1');
}

TEST_CASE("a folder of a module is copied with its files") {
  const TemporaryFolder temporary;
  temporary.write("in/1_Pooling/config.json", "mean");
  temporary.write("in/1_Pooling/deeper/file", "x");
  FolderWriter writer(temporary.path() / "out", {});
  writer.copy_file(temporary.path() / "in/1_Pooling");
  writer.commit();
  CHECK(names_in(temporary.path() / "out") == Names{"1_Pooling"});
  CHECK(names_in(temporary.path() / "out/1_Pooling") == Names{"config.json"});
}

TEST_CASE("output and input may not lie in each other, whatever links lead there") {
  const TemporaryFolder temporary;
  const auto in = temporary.path() / "in";
  write_model(in, '1');
  fs::create_directory_symlink(in, temporary.path() / "link");
  WriteOptions overwrite;
  overwrite.overwrite = true;
  for (const fs::path& out : std::vector<fs::path>{
           in, in / "sub", temporary.path() / "link", temporary.path() / "link" / "x",
           temporary.path() / "in" / ".." / "in", temporary.path()}) {
    CAPTURE(out);
    CHECK(contains(refused(ErrorKind::usage, out, overwrite, {in}),
                   "output and input lie in each other"));
  }
  CHECK(fill_of(in) == '1');
  CHECK(names_in(temporary.path()) == Names{"in", "link"});
}

TEST_CASE("a name that the file system does not take is refused at once") {
  const TemporaryFolder temporary;
  const auto text = refused(ErrorKind::resource, temporary.path() / std::string(300, 'n'));
  CHECK(contains(text, "File name too long; choose a shorter name"));
}

TEST_CASE("a file system that takes no new files is refused at once") {
  CHECK(
      contains(refused(ErrorKind::resource, "/proc/out"),
               "/proc/.out.graft-lock: cannot create the lock file: No such file or directory; it "
               "is gone, or takes no new files: choose an output folder on a disk"));
}

TEST_CASE("a folder without permission to write is refused at once") {
  const TemporaryFolder temporary;
  const auto closed = temporary.path() / "closed";
  fs::create_directory(closed);
  ::chmod(closed.c_str(), 0555);
  const pid_t child = ::fork();
  if (child == 0) {
    if (::geteuid() == 0 && ::setuid(65534) != 0) ::_exit(3);  // root may write everywhere
    ::chmod(temporary.path().c_str(), 0755);
    try {
      const FolderWriter writer(closed / "out", {});
    } catch (const Error& error) {
      ::_exit(error.kind() == ErrorKind::resource &&
                      std::string(error.what())
                              .find("Permission denied; choose an output folder that "
                                    "you may write to") != std::string::npos
                  ? 0
                  : 2);
    }
    ::_exit(1);
  }
  ::chmod(temporary.path().c_str(), 0755);
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WEXITSTATUS(status) == 0);
  ::chmod(closed.c_str(), 0755);
}

TEST_CASE("a full disk is an error of resources that leaves what was there") {
  const TemporaryFolder temporary;
  const auto out = temporary.path() / "out";
  write_model(out, '1');
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit small{4096, 4096};  // the nearest that a test gets to a full disk
    ::setrlimit(RLIMIT_FSIZE, &small);
    WriteOptions overwrite;
    overwrite.overwrite = true;
    try {
      FolderWriter writer(out, overwrite);
      writer.write_text("config.json", "{}");
      writer.write_tensors({tensor("a", Dtype::U8, 1'000'000, '2')});
      writer.commit();
    } catch (const Error& error) {
      ::_exit(error.kind() == ErrorKind::resource &&
                      std::string(error.what()).find("cannot write the file: File too large") !=
                          std::string::npos
                  ? 0
                  : 2);
    }
    ::_exit(1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(fill_of(out) == '1');
  CHECK(names_in(temporary.path()) == Names{"out"});
}

TEST_CASE("a killed writer leaves no final name, and the next one cleans up") {
  const TemporaryFolder temporary;
  const auto out = temporary.path() / "out";
  const pid_t child = ::fork();
  if (child == 0) {
    FolderWriter writer(out, {});
    writer.write_text("config.json", "{}");
    writer.write_tensors({tensor("a", Dtype::U8, 1000, '1')});
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WIFSIGNALED(status));
  CHECK_FALSE(fs::exists(out));
  CHECK(names_in(temporary.path()) == Names{".out.graft-lock", ".out.graft-partial"});
  write_model(out, '2');
  CHECK(fill_of(out) == '2');
  CHECK(names_in(temporary.path()) == Names{"out"});
}

TEST_CASE("a writer killed between its two renames is undone by the next one") {
  const TemporaryFolder temporary;
  const auto out = temporary.path() / "out";
  write_model(out, '1');
  fs::rename(out, temporary.path() / ".out.graft-former");
  fs::create_directory(temporary.path() / ".out.graft-partial");
  CHECK(contains(refused(ErrorKind::usage, out), "the output folder is not empty"));
  CHECK(fill_of(out) == '1');
  CHECK(names_in(temporary.path()) == Names{"out"});
}

TEST_CASE("two writers of one output: the second is told who the first is") {
  const TemporaryFolder temporary;
  const FolderWriter first(temporary.path() / "out", {});
  const auto text = refused(ErrorKind::resource, temporary.path() / "out");
  CHECK(contains(text, "another process is writing this output: found process '" +
                           std::to_string(::getpid()) + "'"));
  const FolderWriter other(temporary.path() / "other", {});
}

TEST_CASE("an interrupted writer leaves nothing") {
  const TemporaryFolder temporary;
  WriteOptions options;
  options.progress = [](std::uint64_t, std::uint64_t) { return false; };
  const auto error = test::thrown_by([&] {
    FolderWriter writer(temporary.path() / "out", options);
    writer.write_tensors({tensor("a", Dtype::U8, 10, 'a')});
  });
  CHECK(error.kind() == ErrorKind::interrupted);
  CHECK(names_in(temporary.path()).empty());
}

TEST_CASE("after an error a writer takes nothing more, and commit does not happen") {
  const TemporaryFolder temporary;
  FolderWriter writer(temporary.path() / "out", {});
  CHECK(contains(test::message_of([&] { writer.write_text("../x", "y"); }),
                 "not the name of a file in the output folder: found '../x'"));
  CHECK(contains(test::message_of([&] { writer.commit(); }),
                 "the output was given up after an error"));
  CHECK_FALSE(fs::exists(temporary.path() / "out"));
}

TEST_CASE("what a reader would refuse is not written") {
  const TemporaryFolder temporary;
  const auto why = [&](std::vector<TensorToWrite> tensors) {
    FolderWriter writer(temporary.path() / "out", {});
    return test::message_of([&] { writer.write_tensors(std::move(tensors)); });
  };
  CHECK(contains(why({tensor("a", Dtype::U8, 1, 'x'), tensor("a", Dtype::U8, 1, 'x')}),
                 "tensor 'a': two tensors have the same name"));
  CHECK(contains(why({tensor("__metadata__", Dtype::U8, 1, 'x')}), "__metadata__"));
  CHECK(contains(why({{"big", Dtype::F64, {1LL << 62, 4}, {}}}),
                 "tensor 'big': the tensor is too large"));
  why({tensor("\xff", Dtype::U8, 1, 'x')});
  CHECK(names_in(temporary.path()).empty());
}

TEST_CASE("one tensor file is written whole or not at all") {
  const TemporaryFolder temporary;
  const auto file = temporary.path() / "x.safetensors";
  write_tensor_file(file, {tensor("a", Dtype::U8, 4, '1')});
  CHECK(Checkpoint::open_file(file).at("a").bytes == 4);
  auto failing = tensor("a", Dtype::U8, 4, '2');
  failing.data = []() -> std::shared_ptr<const void> { throw std::runtime_error("no data"); };
  CHECK_THROWS(write_tensor_file(file, {failing}));
  CHECK(Checkpoint::open_file(file).at("a").bytes == 4);
  CHECK(names_in(temporary.path()) == Names{"x.safetensors"});
}

TEST_CASE("companion files are copied through links, special ones are refused") {
  const TemporaryFolder temporary;
  temporary.write("blobs/1", "tokens");
  fs::create_symlink("blobs/1", temporary.path() / "tokenizer.json");
  FolderWriter writer(temporary.path() / "out", {});
  writer.copy_file(temporary.path() / "tokenizer.json");
  writer.commit();
  CHECK(test::read_file(temporary.path() / "out" / "tokenizer.json") == "tokens");
  CHECK_FALSE(fs::is_symlink(temporary.path() / "out" / "tokenizer.json"));
}
