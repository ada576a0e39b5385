#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <limits>
#include <optional>
#include <unordered_set>

#include "checkpoint/folder.h"
#include "checkpoint/input_file.h"
#include "checkpoint/model_files.h"
#include "checkpoint/output_file.h"
#include "checkpoint/output_lock.h"
#include "checkpoint/safetensors_header.h"
#include "graft/checkpoint.h"
#include "graft/error.h"

namespace graft {

namespace fs = std::filesystem;

struct FolderWriter::State {
  fs::path folder, partial, former;
  WriteOptions options;
  std::optional<OutputLock> lock;
  bool has_tensors = false;
  bool failed = false;  ///< an error left the temporary folder incomplete
  bool committed = false;

  /// Runs one step of writing. After a step that threw, the folder can only be given up.
  template <class Step>
  void run(Step step) {
    if (failed || committed)
      throw Error(ErrorKind::usage, failed ? "the output was given up after an error"
                                           : "the output is already complete")
          .at(path_text(folder));
    failed = true;
    step();
    failed = false;
  }
};

namespace {

constexpr std::uint64_t kPiece = 16u << 20;  ///< written between two calls of progress

/// Runs `step` and turns errors of the standard library's file functions into ours.
template <class Step>
void in_file_system(Step step) {
  try {
    step();
  } catch (const fs::filesystem_error& error) {
    throw output_error("examine the folder", error.path1(), error.code().value());
  }
}

/// The folder's own place, whatever symbolic links lead to it.
fs::path resolve(const fs::path& folder) {
  if (folder.empty()) throw Error(ErrorKind::usage, "the output folder needs a name");
  std::error_code code;
  fs::path path = fs::weakly_canonical(fs::absolute(folder, code), code);
  if (code) throw output_error("find the folder", folder, code.value());
  if (!path.has_filename()) path = path.parent_path();
  if (!path.has_filename())
    throw Error(ErrorKind::usage, "the output folder needs a name").at(path_text(folder));
  if (fs::is_symlink(fs::symlink_status(path, code)))
    throw Error(ErrorKind::usage, "the output folder is a symbolic link that leads nowhere")
        .at(path_text(folder))
        .hint("remove the link or create the folder it names");
  return path;
}

/// ".NAME.graft-PURPOSE" beside a resolved folder.
fs::path hidden_beside(const fs::path& folder, std::string_view purpose) {
  return folder.parent_path() /
         ("." + folder.filename().string() + ".graft-" + std::string(purpose));
}

/// Whether `path` is `folder` or lies inside it; compares inodes, so no spelling hides it.
bool is_inside(fs::path path, const fs::path& folder) {
  for (std::error_code code;; path = path.parent_path()) {
    if (fs::equivalent(path, folder, code) && !code) return true;
    if (path == path.parent_path()) return false;
  }
}

bool is_mount_point(const fs::path& path) {
  struct statx status{};
  return ::statx(AT_FDCWD, path.c_str(), 0, STATX_TYPE, &status) == 0 &&
         (status.stx_attributes & STATX_ATTR_MOUNT_ROOT);
}

/// Throws unless `folder` may be created or replaced. Changes nothing.
void check_target(const fs::path& folder, bool overwrite, const std::vector<fs::path>& inputs) {
  for (const auto& given : inputs) {
    std::error_code code;
    const fs::path input = fs::weakly_canonical(given, code);
    if (code) throw system_error("find the input", given, code.value());
    if (is_inside(folder, input) || is_inside(input, folder))
      throw Error(ErrorKind::usage, "output and input lie in each other")
          .at(path_text(folder))
          .found("the input " + path_text(input))
          .hint("choose another output folder");
  }
  if (!fs::is_directory(folder.parent_path()))
    throw Error(ErrorKind::usage, "the folder for the output does not exist")
        .at(path_text(folder.parent_path()))
        .hint("create it first");
  if (!fs::exists(folder)) return;
  if (!fs::is_directory(folder))
    throw Error(ErrorKind::usage, "the output exists and is not a folder").at(path_text(folder));
  if (is_mount_point(folder))
    throw Error(ErrorKind::usage, "the output folder is a mount point, which cannot be replaced")
        .at(path_text(folder))
        .hint("choose a new folder inside it");
  const auto names = names_in(folder);
  if (names.empty()) return;
  if (!overwrite)
    throw Error(ErrorKind::usage, "the output folder is not empty")
        .at(path_text(folder))
        .hint("choose another one, or replace it with --overwrite");
  const bool is_model =
      std::any_of(names.begin(), names.end(), [](const std::string& name) {
        return name == "config.json" || fs::path(name).extension() == ".safetensors";
      });
  if (!is_model)
    throw Error(ErrorKind::usage, "the output folder is not empty and holds no model")
        .at(path_text(folder))
        .expected("config.json or a .safetensors file in a folder to overwrite")
        .hint("choose another one, or empty it yourself");
  const auto folders = folders_of_model(folder);
  for (const auto& name : names)
    if (std::error_code error;
        fs::is_directory(folder / name, error) && !folders.contains(folder / name))
      throw Error(ErrorKind::usage, "the output folder holds more than a model")
          .at(path_text(folder))
          .expected("files of a model, which --overwrite removes")
          .found("the folder " + quote(name))
          .hint("choose another one, or empty it yourself");
}

void remove_left_over(const fs::path& folder) {
  if (const int code = remove_tree(folder))
    throw output_error("remove what a process that died left", folder, code);
}

void rename_folder(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0)
    throw output_error("move the folder to its final name", to, errno);
}

struct Shard {
  std::vector<std::size_t> members;    ///< positions in the list of tensors, in its order
  std::vector<std::uint64_t> offsets;  ///< of each member's data, from the start of the file
  std::uint64_t bytes = 0;             ///< of all data
  std::string start;                   ///< length and header
  std::string name;
};

void append_length(std::string& out, std::uint64_t length) {
  for (std::size_t i = 0; i < kLengthBytes; ++i)
    out += static_cast<char>(static_cast<std::uint8_t>(length >> (8 * i)));
}

/// Lays the members out and writes the header. Wider elements come first, as in the files that the
/// format's own library writes: so every tensor is aligned to its element.
void lay_out(Shard& shard, const std::vector<TensorToWrite>& tensors,
             const std::vector<std::uint64_t>& sizes) {
  std::vector<std::size_t> order(shard.members.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return size_of(tensors[shard.members[a]].dtype) > size_of(tensors[shard.members[b]].dtype);
  });
  std::string header = R"({"__metadata__":{"format":"pt"})";
  std::uint64_t end = 0;
  shard.offsets.resize(order.size());
  for (const std::size_t i : order) {
    const TensorToWrite& tensor = tensors[shard.members[i]];
    const std::uint64_t begin = end;
    end += sizes[shard.members[i]];
    shard.offsets[i] = begin;
    header.append(",").append(to_json(tensor.name)).append(R"(:{"dtype":")");
    header.append(name_of(tensor.dtype)).append(R"(","shape":[)");
    for (std::size_t d = 0; d < tensor.shape.size(); ++d)
      header.append(d ? "," : "").append(std::to_string(tensor.shape[d]));
    header.append(R"(],"data_offsets":[)").append(std::to_string(begin)).append(",");
    header.append(std::to_string(end)).append("]}");
  }
  header += '}';
  header.append((8 - header.size() % 8) % 8, ' ');
  append_length(shard.start, header.size());
  for (auto& offset : shard.offsets) offset += kLengthBytes + header.size();
  // What the reader would refuse (bad UTF-8, reserved names, too long a header) is not written.
  try {
    parse_safetensors_header(header, kLengthBytes + header.size() + end);
  } catch (Error& error) {
    throw error.hint("a reader would refuse the file: give the tensor another name");
  }
  shard.start += header;
}

std::vector<Shard> split(const std::vector<TensorToWrite>& tensors, std::uint64_t shard_bytes) {
  std::vector<std::uint64_t> sizes;
  std::unordered_set<std::string_view> names;
  std::vector<Shard> shards(1);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    try {
      if (!names.insert(tensors[i].name).second)
        throw Error(ErrorKind::usage, "two tensors have the same name");
      sizes.push_back(tensor_bytes(tensors[i].dtype, tensors[i].shape));
    } catch (Error& error) {
      error.at("tensor " + quote(tensors[i].name));
      throw;
    }
    if (!shards.back().members.empty() &&
        sizes[i] > shard_bytes - std::min(shards.back().bytes, shard_bytes))
      shards.emplace_back();
    shards.back().members.push_back(i);
    shards.back().bytes += sizes[i];
  }
  for (std::size_t i = 0; i < shards.size(); ++i) {
    char name[64] = "model.safetensors";
    if (shards.size() > 1)
      std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    shards[i].name = name;
    lay_out(shards[i], tensors, sizes);
  }
  return shards;
}

/// As Transformers writes it: sorted, two spaces, a newline at the end.
std::string index_text(const std::vector<Shard>& shards,
                       const std::vector<TensorToWrite>& tensors) {
  Value::Object map;
  std::uint64_t total = 0;
  for (const auto& shard : shards) {
    total += shard.bytes;
    for (const std::size_t i : shard.members) map.emplace_back(tensors[i].name, shard.name);
  }
  std::sort(map.begin(), map.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  Value metadata;
  metadata.set("total_size", static_cast<std::int64_t>(total));
  Value index;
  index.set("metadata", std::move(metadata));
  index.set("weight_map", std::move(map));
  return to_json(index, 2) + "\n";
}

void check_space(const fs::path& folder, std::uint64_t needed) {
  struct statvfs space{};
  // Some file systems do not know their size and report none.
  if (::statvfs(folder.c_str(), &space) != 0 || space.f_blocks == 0) return;
  const std::uint64_t free = std::uint64_t{space.f_bavail} * space.f_frsize;
  if (needed > free)
    throw Error(ErrorKind::resource, "the disk has too little space")
        .at(path_text(folder))
        .expected(std::to_string(needed) + " bytes")
        .found(std::to_string(free))
        .hint("free some space or choose another output folder");
}

void check_file_name(const std::string& name) {
  if (name.empty() || name == "." || name == ".." ||
      name.find_first_of(std::string_view("/\0", 2)) != std::string::npos)
    throw Error(ErrorKind::usage, "not the name of a file in the output folder").found(quote(name));
}

}  // namespace

fs::path FolderWriter::sibling(const fs::path& folder, std::string_view purpose) {
  return hidden_beside(resolve(folder), purpose);
}

FolderWriter::FolderWriter(fs::path folder, WriteOptions options,
                           const std::vector<fs::path>& inputs)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.folder = resolve(folder);
  s.options = std::move(options);
  s.partial = hidden_beside(s.folder, "partial");
  s.former = hidden_beside(s.folder, "former");
  in_file_system([&] {
    check_target(s.folder, s.options.overwrite, inputs);
    s.lock.emplace(hidden_beside(s.folder, "lock"));

    // What lies there now was left by a process that died: whoever is alive holds the lock. A
    // former folder without a successor means that it died between the two renames of commit().
    if (fs::exists(s.former) && !fs::exists(s.folder)) rename_folder(s.former, s.folder);
    remove_left_over(s.partial);
    remove_left_over(s.former);
    check_target(s.folder, s.options.overwrite, inputs);
  });
  if (::mkdir(s.partial.c_str(), 0777) != 0)
    throw output_error("create the folder", s.partial, errno);
}

FolderWriter::~FolderWriter() {
  if (!state_->committed) remove_tree(state_->partial);  // what stays is removed by the next run
}

void FolderWriter::write_tensors(std::vector<TensorToWrite> tensors) {
  State& s = *state_;
  s.run([&] {
    if (std::exchange(s.has_tensors, true))
      throw Error(ErrorKind::usage, "the tensors of a folder are written at once");
    const std::vector<Shard> shards = split(tensors, s.options.shard_bytes);
    std::uint64_t total = 0, needed = 0, written = 0;
    for (const auto& shard : shards) {
      total += shard.bytes;
      needed += shard.bytes + shard.start.size();
    }
    check_space(s.partial, needed);
    for (const auto& shard : shards) {
      OutputFile file(s.partial / shard.name);
      file.write(0, shard.start.data(), shard.start.size());
      for (std::size_t i = 0; i < shard.members.size(); ++i) {
        TensorToWrite& tensor = tensors[shard.members[i]];
        const std::uint64_t size = tensor_bytes(tensor.dtype, tensor.shape);
        const std::shared_ptr<const void> data = std::exchange(tensor.data, nullptr)();
        if (!data && size > 0)
          throw Error(ErrorKind::internal, "there is no data").at("tensor " + quote(tensor.name));
        for (std::uint64_t done = 0; done < size;) {
          const std::uint64_t piece = std::min(kPiece, size - done);
          file.write(shard.offsets[i] + done, static_cast<const char*>(data.get()) + done, piece);
          done += piece;
          written += piece;
          if (s.options.progress && !s.options.progress(written, total))
            throw Error(ErrorKind::interrupted, "interrupted while the tensors were written")
                .at(path_text(s.folder))
                .hint("no output was left behind");
        }
      }
      file.finish();
    }
    if (shards.size() > 1) {
      OutputFile file(s.partial / "model.safetensors.index.json");
      const std::string text = index_text(shards, tensors);
      file.write(0, text.data(), text.size());
      file.finish();
    }
  });
}

/// The bytes from `begin` on to the same place.
static void copy(const InputFile& input, std::uint64_t begin, OutputFile& output) {
  std::string piece;
  for (std::uint64_t done = begin; done < input.size(); done += piece.size()) {
    piece.resize(std::min(kPiece, input.size() - done));
    input.read(done, piece.size(), piece.data());
    output.write(done, piece.data(), piece.size());
  }
}

void FolderWriter::write_text(std::string_view file_name, std::string_view text) {
  State& s = *state_;
  s.run([&] {
    check_file_name(std::string(file_name));
    OutputFile file(s.partial / file_name);
    file.write(0, text.data(), text.size());
    file.finish();
  });
}

static void copy_whole(const fs::path& from, const fs::path& to) {
  const InputFile input(from);
  OutputFile output(to);
  copy(input, 0, output);
  input.require_unchanged();
  output.finish();
}

void FolderWriter::copy_file(const fs::path& from) {
  State& s = *state_;
  s.run([&] {
    check_file_name(from.filename().string());
    const fs::path to = s.partial / from.filename();
    if (!fs::is_directory(from)) return copy_whole(from, to);
    in_file_system([&] {
      fs::create_directory(to);
      for (const auto& name : names_in(from))
        if (std::error_code error; fs::is_regular_file(from / name, error))
          copy_whole(from / name, to / name);
    });
    sync_folder(to);
  });
}

bool FolderWriter::copy_repaired(const fs::path& from) {
  State& s = *state_;
  bool padded = false;
  s.run([&] {
    check_file_name(from.filename().string());
    const InputFile input(from);
    std::string header;
    try {
      header.resize(std::min<std::uint64_t>(64, input.size()));
      input.read(0, header.size(), header.data());
      header.resize(kLengthBytes + safetensors_header_length(header, input.size()));
      input.read(0, header.size(), header.data());
      for (auto at = header.size(); at > kLengthBytes && header[at - 1] == '\0'; --at) {
        header[at - 1] = ' ';
        padded = true;
      }
      parse_safetensors_header(std::string_view(header).substr(kLengthBytes), input.size());
    } catch (Error& error) {
      throw error.at(path_text(from));
    }
    OutputFile output(s.partial / from.filename());
    output.write(0, header.data(), header.size());
    copy(input, header.size(), output);
    input.require_unchanged();
    output.finish();
  });
  return padded;
}

void FolderWriter::commit() {
  State& s = *state_;
  s.run([&] {
    const fs::path parent = s.folder.parent_path();  // nothing allocates after the last rename
    sync_folder(s.partial);
    bool replaces = false;
    in_file_system([&] { replaces = fs::exists(s.folder) && !names_in(s.folder).empty(); });
    if (replaces) {
      if (!s.options.overwrite)
        throw Error(ErrorKind::usage, "the output folder was filled by another program meanwhile")
            .at(path_text(s.folder))
            .hint("choose another output folder");
      rename_folder(s.folder, s.former);
    }
    try {
      rename_folder(s.partial, s.folder);
    } catch (const Error&) {
      if (replaces) rename_folder(s.former, s.folder);
      throw;
    }
    s.committed = true;
    sync_folder(parent);
    remove_tree(s.former);  // what stays is removed by the next run
  });
  s.lock.reset();
}

void write_tensor_file(const fs::path& file, std::vector<TensorToWrite> tensors) {
  const std::vector<Shard> shards = split(tensors, std::numeric_limits<std::uint64_t>::max());
  const Shard& shard = shards.front();
  write_whole(file, [&](OutputFile& out) {
    out.write(0, shard.start.data(), shard.start.size());
    for (std::size_t i = 0; i < shard.members.size(); ++i) {
      const TensorToWrite& tensor = tensors[shard.members[i]];
      const auto data = tensor.data();
      out.write(shard.offsets[i], data.get(), tensor_bytes(tensor.dtype, tensor.shape));
    }
  });
}

}  // namespace graft
