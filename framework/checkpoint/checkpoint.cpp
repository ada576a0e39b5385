#include "graft/checkpoint.h"

#include <algorithm>
#include <bit>
#include <deque>
#include <iterator>
#include <numeric>
#include <unordered_map>

#include "checkpoint/folder.h"
#include "checkpoint/input_file.h"
#include "checkpoint/natural_order.h"
#include "checkpoint/safetensors_header.h"
#include "checkpoint/shard_index.h"
#include "graft/error.h"

static_assert(std::endian::native == std::endian::little,
              "safetensors data is little-endian and is used as it lies in the file");

namespace graft {

namespace fs = std::filesystem;

struct Checkpoint::State {
  fs::path folder;
  Value config;
  std::deque<InputFile> files;
  std::vector<fs::path> shards;
  std::vector<TensorInfo> tensors;  ///< by natural_less
  std::uint64_t total_bytes = 0;

  void add_shard(const fs::path& path, std::size_t max_tensors);
  void sort_tensors();
  void check_index(const fs::path& path, const ShardIndex& index) const;
  const InputFile& file_of(const TensorInfo& info) const;
};

namespace {

constexpr std::uint64_t kMaxConfigBytes = 8u << 20;
constexpr std::uint64_t kMaxIndexBytes = 100'000'000;
constexpr std::string_view kIndexName = "model.safetensors.index.json";
constexpr std::string_view kSingleName = "model.safetensors";

/// Runs `read` and adds the file to an error it throws.
template <class Read>
auto in_file(const fs::path& path, Read read) {
  try {
    return read();
  } catch (Error& error) {
    error.at(path_text(path));
    throw;
  }
}

bool contains(const std::vector<std::string>& sorted, std::string_view name) {
  return std::binary_search(sorted.begin(), sorted.end(), name);
}

/// The first `most` of the names in quotes.
std::string quoted_list(const std::vector<std::string>& names, std::size_t most) {
  std::string out;
  for (std::size_t i = 0; i < std::min(most, names.size()); ++i)
    out += (i ? ", " : "") + quote(names[i]);
  if (names.size() > most) out += " and " + std::to_string(names.size() - most) + " more";
  return out;
}

Value read_config(const fs::path& folder, const std::vector<std::string>& names) {
  if (!contains(names, "config.json"))
    throw Error(ErrorKind::model, "config.json is missing")
        .at(path_text(folder))
        .hint("give the folder of a Hugging Face model");
  const fs::path path = folder / "config.json";
  const std::string text = InputFile(path).read_all(kMaxConfigBytes);
  return in_file(path, [&] {
    Value config = parse_json(text);
    if (!config.is_object())
      throw Error(ErrorKind::model, "the config has the wrong form")
          .at("line 1")
          .expected("an object")
          .found(config.type_name())
          .hint("get the config.json of the model again");
    return config;
  });
}

/// Refuses a folder without .safetensors files, unless it may be without weights.
void refuse_missing_weights(const fs::path& folder, const std::vector<std::string>& names,
                            bool weights_optional) {
  std::vector<std::string> pickles, ggufs;
  for (const auto& name : names) {
    for (const std::string_view ending : {".bin", ".pt", ".pth", ".ckpt", ".bin.index.json"})
      if (name.ends_with(ending)) pickles.push_back(name);
    if (name.ends_with(".gguf")) ggufs.push_back(name);
  }
  if (!pickles.empty())
    throw Error(ErrorKind::model, "pickle is not read, because reading it can run code")
        .at(path_text(folder))
        .expected("model.safetensors")
        .found(quoted_list(pickles, 3))
        .hint(
            "convert with Transformers: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(new_folder)");
  if (!ggufs.empty())
    throw Error(ErrorKind::model, "the folder has no safetensors weights")
        .at(path_text(folder))
        .found(quoted_list(ggufs, 3))
        .hint("import a GGUF file with `graft import`");
  if (!weights_optional)
    throw Error(ErrorKind::model, "the folder has no weights")
        .at(path_text(folder))
        .expected("model.safetensors, or model.safetensors.index.json with its shards")
        .hint("download them");
}

/// The file that holds everything when there is no index; empty when the folder has no weights.
fs::path only_file(const fs::path& folder, const std::vector<std::string>& names,
                   bool weights_optional) {
  std::vector<std::string> candidates;
  for (const auto& name : names)
    if (name.ends_with(".safetensors")) candidates.push_back(name);
  if (contains(names, kSingleName)) return folder / kSingleName;
  if (candidates.size() == 1) return folder / candidates[0];
  if (candidates.size() > 1)
    throw Error(ErrorKind::model, "several safetensors files but no index")
        .at(path_text(folder))
        .expected(kIndexName)
        .found(quoted_list(candidates, 3))
        .hint("download the index, too");
  refuse_missing_weights(folder, names, weights_optional);
  return {};
}

ShardIndex read_index(const fs::path& folder, const std::vector<std::string>& names,
                      std::size_t max_tensors) {
  const fs::path path = folder / kIndexName;
  const std::string text = InputFile(path).read_all(kMaxIndexBytes);
  ShardIndex index = in_file(path, [&] { return parse_shard_index(text, max_tensors); });
  std::vector<std::string> missing;
  for (const auto& shard : index.shards)
    if (!contains(names, shard)) missing.push_back(shard);
  if (!missing.empty())
    throw Error(ErrorKind::model, "shards are missing")
        .at(path_text(path))
        .expected(std::to_string(index.shards.size()) + " shards")
        .found("all but " + quoted_list(missing, 1000))
        .hint("download them");
  if (contains(names, kSingleName) &&
      std::find(index.shards.begin(), index.shards.end(), kSingleName) == index.shards.end())
    throw Error(ErrorKind::model, "model.safetensors lies beside an index that does not name it")
        .at(path_text(path))
        .hint("remove the one that does not belong to the model");
  return index;
}

}  // namespace

void Checkpoint::State::add_shard(const fs::path& path, std::size_t max_tensors) {
  const InputFile& file = files.emplace_back(path);
  auto added = in_file(path, [&] {
    std::string start(std::min<std::uint64_t>(file.size(), 64), '\0');
    file.read(0, start.size(), start.data());
    std::string header(safetensors_header_length(start, file.size()), '\0');
    file.read(kLengthBytes, header.size(), header.data());
    return parse_safetensors_header(header, file.size(), max_tensors - tensors.size());
  });
  for (auto& info : added) {
    info.shard = static_cast<std::uint32_t>(shards.size());
    total_bytes += info.bytes;
  }
  shards.push_back(path);
  tensors.insert(tensors.end(), std::make_move_iterator(added.begin()),
                 std::make_move_iterator(added.end()));
}

void Checkpoint::State::sort_tensors() {
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return natural_less(a.name, b.name); });
  const auto twice =
      std::adjacent_find(tensors.begin(), tensors.end(),
                         [](const auto& a, const auto& b) { return a.name == b.name; });
  if (twice != tensors.end())
    throw Error(ErrorKind::model, "the tensor is in two shards")
        .at("tensor " + quote(twice->name))
        .at(path_text(folder))
        .found(quote(shards[twice->shard].filename().string()) + " and " +
               quote(shards[std::next(twice)->shard].filename().string()))
        .hint("the shards do not belong together: download them again");
}

void Checkpoint::State::check_index(const fs::path& path, const ShardIndex& index) const {
  constexpr std::string_view kStale =
      "the index does not belong to these shards: download both again";
  std::unordered_map<std::string_view, std::size_t> by_name(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) by_name.emplace(tensors[i].name, i);
  std::vector<bool> named(tensors.size());
  for (const auto& [name, shard] : index.weight_map) {
    const auto found = by_name.find(name);
    const TensorInfo* info = found == by_name.end() ? nullptr : &tensors[found->second];
    if (!info || info->shard != shard)
      throw Error(ErrorKind::model, "the tensor is not where the index says")
          .at("tensor " + quote(name))
          .at(path_text(path))
          .expected("it in " + quote(index.shards[shard]))
          .found(info ? "it in " + quote(index.shards[info->shard]) : "it in no shard")
          .hint(kStale);
    named[found->second] = true;
  }
  const auto hidden = std::find(named.begin(), named.end(), false);
  if (hidden != named.end()) {
    const TensorInfo& info = tensors[static_cast<std::size_t>(hidden - named.begin())];
    throw Error(ErrorKind::model, "the tensor is missing from the index")
        .at("tensor " + quote(info.name))
        .at(path_text(path))
        .found("it in " + quote(index.shards[info.shard]))
        .hint(kStale);
  }
}

const InputFile& Checkpoint::State::file_of(const TensorInfo& info) const {
  if (info.shard >= files.size() || info.offset > files[info.shard].size() ||
      info.bytes > files[info.shard].size() - info.offset)
    throw Error(ErrorKind::usage, "the tensor is not one of this checkpoint")
        .at("tensor " + quote(info.name));
  return files[info.shard];
}

Checkpoint Checkpoint::open(const fs::path& folder, const OpenOptions& options) {
  auto state = std::make_shared<State>();
  state->folder = folder;
  const auto names = names_in(folder);
  state->config = read_config(folder, names);
  if (contains(names, kIndexName)) {
    const ShardIndex index = read_index(folder, names, options.max_tensors);
    for (const auto& shard : index.shards) state->add_shard(folder / shard, options.max_tensors);
    state->sort_tensors();
    state->check_index(folder / kIndexName, index);
  } else if (const fs::path file = only_file(folder, names, options.weights_optional);
             !file.empty()) {
    state->add_shard(file, options.max_tensors);
    state->sort_tensors();
  }
  Checkpoint checkpoint;
  checkpoint.state_ = std::move(state);
  return checkpoint;
}

Checkpoint Checkpoint::open_file(const fs::path& file, const OpenOptions& options) {
  auto state = std::make_shared<State>();
  state->folder = file.parent_path();
  state->add_shard(file, options.max_tensors);
  state->sort_tensors();
  Checkpoint checkpoint;
  checkpoint.state_ = std::move(state);
  return checkpoint;
}

const fs::path& Checkpoint::folder() const { return state_->folder; }
const Value& Checkpoint::config() const { return state_->config; }
const std::vector<TensorInfo>& Checkpoint::tensors() const { return state_->tensors; }
const std::vector<fs::path>& Checkpoint::shards() const { return state_->shards; }
std::uint64_t Checkpoint::total_bytes() const { return state_->total_bytes; }

const TensorInfo* Checkpoint::find(std::string_view name) const {
  const auto& tensors = state_->tensors;
  const auto info = std::lower_bound(
      tensors.begin(), tensors.end(), name,
      [](const TensorInfo& a, std::string_view b) { return natural_less(a.name, b); });
  return info != tensors.end() && info->name == name ? &*info : nullptr;
}

const TensorInfo& Checkpoint::at(std::string_view name) const {
  if (const TensorInfo* info = find(name)) return *info;
  // Comparing with every name of a huge checkpoint would take seconds: the neighbours will do.
  constexpr std::ptrdiff_t kMostCompared = 5000;
  const auto& tensors = state_->tensors;
  const auto near = std::lower_bound(
      tensors.begin(), tensors.end(), name,
      [](const TensorInfo& a, std::string_view b) { return natural_less(a.name, b); });
  std::vector<std::string> candidates;
  for (auto info = near - std::min(kMostCompared, near - tensors.begin());
       info != near + std::min(kMostCompared, tensors.end() - near); ++info)
    candidates.push_back(info->name);
  Error error(ErrorKind::model, "the tensor is missing");
  error.at("tensor " + quote(name)).at(path_text(folder()));
  if (const std::string names = nearest_names(name, candidates); !names.empty())
    error.hint("the nearest names are " + names);
  throw error;
}

void Checkpoint::read(const TensorInfo& info, void* out) const { read(info, 0, info.bytes, out); }

void Checkpoint::read(const TensorInfo& info, std::uint64_t begin, std::uint64_t size,
                      void* out) const {
  const InputFile& file = state_->file_of(info);
  if (begin > info.bytes || size > info.bytes - begin)
    throw Error(ErrorKind::usage, "the range lies outside the tensor")
        .at("tensor " + quote(info.name))
        .expected("at most " + std::to_string(info.bytes) + " bytes")
        .found(std::to_string(size) + " bytes from " + std::to_string(begin));
  try {
    file.require_unchanged();
    file.read(info.offset + begin, size, out);
  } catch (Error& error) {
    error.at("tensor " + quote(info.name));
    throw;
  }
}

std::shared_ptr<const void> Checkpoint::map(const TensorInfo& info) const {
  const auto whole = state_->file_of(info).map();
  return {whole, whole.get() + info.offset};
}

std::string Checkpoint::fingerprint() const {
  std::string out;
  for (const auto& file : state_->files) out.append(file.fingerprint()).append(" ");
  return out;
}

}  // namespace graft
