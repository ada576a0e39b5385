#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "graft/dtype.h"
#include "graft/export.h"
#include "graft/value.h"

namespace graft {

/// One tensor of a checkpoint, every number already checked against its file.
struct TensorInfo {
  std::string name;  ///< opaque text from the file: print it through quote()
  Dtype dtype{};
  std::vector<std::int64_t> shape;  ///< [] is a scalar
  std::uint64_t bytes = 0;
  std::uint32_t shard = 0;   ///< index into Checkpoint::shards()
  std::uint64_t offset = 0;  ///< from the start of the shard file
};

/// Most tensors that a checkpoint may have, unless OpenOptions says otherwise.
inline constexpr std::size_t kMaxTensors = std::size_t{1} << 20;

struct OpenOptions {
  /// Accepts a folder with config.json but no weights, as one without tensors (for planning).
  bool weights_optional = false;
  std::size_t max_tensors = kMaxTensors;
};

/// Read view of a Hugging Face model folder: config.json and safetensors files, sharded or not.
/// Opening reads headers only. Everything is validated strictly before a byte of data is used:
/// a file that is wrong anywhere is refused with Error(model) naming file, tensor, expected, found.
/// Copies share the open files. All const functions are thread-safe.
class GRAFT_API Checkpoint {
 public:
  /// Throws Error(model), or Error(resource) when the system refuses to open or read.
  /// Takes model.safetensors.index.json and the shards it names, or model.safetensors, or the only
  /// .safetensors file of the folder.
  static Checkpoint open(const std::filesystem::path& folder, const OpenOptions& options = {});
  /// The same for one bare .safetensors file, without a config.
  static Checkpoint open_file(const std::filesystem::path& file, const OpenOptions& options = {});

  const std::filesystem::path& folder() const;
  const Value& config() const;                          ///< config.json; null for open_file
  const std::vector<TensorInfo>& tensors() const;       ///< by name, natural number order
  const TensorInfo* find(std::string_view name) const;  ///< nullptr when absent
  const TensorInfo& at(std::string_view name) const;    ///< throws with the nearest names
  const std::vector<std::filesystem::path>& shards() const;
  std::uint64_t total_bytes() const;  ///< sum over tensors

  /// Copies the tensor's bytes (little-endian, row-major) into `out`, which holds info.bytes.
  /// pread in large pieces: a file that was changed or cut since it was opened is an Error, not a
  /// signal. `info` must be one of tensors().
  void read(const TensorInfo& info, void* out) const;
  /// Bytes [begin, begin + size) of the tensor.
  void read(const TensorInfo& info, std::uint64_t begin, std::uint64_t size, void* out) const;

  /// Address of the tensor inside a read-only private map of its shard, kept alive by the returned
  /// pointer. Trusts the file not to shrink: reading what is gone ends the process.
  std::shared_ptr<const void> map(const TensorInfo& info) const;

  /// Device, inode, size and mtime of each shard as it was opened, as text: another Checkpoint of
  /// the same folder has another one when a shard was replaced in between.
  std::string fingerprint() const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

/// One tensor to write; `data` yields its bytes (little-endian, row-major) when its turn comes and
/// is called once.
struct TensorToWrite {
  std::string name;
  Dtype dtype{};
  std::vector<std::int64_t> shape;
  std::function<std::shared_ptr<const void>()> data;
};

struct WriteOptions {
  /// Most bytes of data in a file that holds more than one tensor.
  std::uint64_t shard_bytes = 5'000'000'000;
  bool overwrite = false;
  /// Called with bytes written so far and the total; returning false interrupts (nothing is left).
  std::function<bool(std::uint64_t, std::uint64_t)> progress;
};

/// A model folder that is complete or absent: everything is written into a hidden temporary sibling
/// of `folder`, synced, and renamed into place by commit(); without commit() the destructor removes
/// it. A lock file beside it keeps a second process away. What a killed process left behind is
/// removed by the next FolderWriter for the same folder.
///
/// The constructor throws, before anything is created, Error(usage) for an existing non-empty
/// folder without `overwrite` (and with it, for one that holds no model), for a folder equal to,
/// inside or around one of `inputs`, and for a mount point; Error(resource) for a parent that is
/// not writable and for an output that another process is writing. Every failure to write is
/// Error(resource). After any error only the destructor may follow. Not thread-safe.
class GRAFT_API FolderWriter {
 public:
  FolderWriter(std::filesystem::path folder, WriteOptions options,
               const std::vector<std::filesystem::path>& inputs = {});
  ~FolderWriter();
  FolderWriter(const FolderWriter&) = delete;
  FolderWriter& operator=(const FolderWriter&) = delete;

  /// model.safetensors, or model-00001-of-0000N.safetensors and model.safetensors.index.json (last)
  /// when the tensors need more than one shard. Metadata {"format":"pt"}. Called at most once.
  /// Tensors are asked for their data and go to shards in the given order; within a file wider
  /// elements come first, so that every tensor is aligned, and otherwise the order is kept.
  void write_tensors(std::vector<TensorToWrite> tensors);
  /// One file of the folder, under a name without folders.
  void write_text(std::string_view file_name, std::string_view text);
  /// A copy of the file (or link's target), or of a folder's files, under its own name.
  void copy_file(const std::filesystem::path& from);
  /// The same of a safetensors file, with spaces where its header is padded with zeros; whether it
  /// was. Throws Error(model) when it would still not be valid.
  bool copy_repaired(const std::filesystem::path& from);
  /// A hidden name beside `folder`, after any links, for something that goes with it:
  /// ".NAME.graft-PURPOSE". A writer of `folder` has "partial", "former" and "lock" itself.
  static std::filesystem::path sibling(const std::filesystem::path& folder,
                                       std::string_view purpose);
  /// Syncs everything and renames. With `overwrite` the former folder is replaced only now.
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Writes one .safetensors file, through a temporary sibling that is renamed at the end. Metadata
/// {"format":"pt"}. Throws Error(resource) when it cannot; then an existing `file` is as it was.
GRAFT_API void write_tensor_file(const std::filesystem::path& file,
                                 std::vector<TensorToWrite> tensors);

}  // namespace graft
