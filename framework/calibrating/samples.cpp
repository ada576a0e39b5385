#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <tuple>

#include "graft/calibration.h"
#include "graft/checkpoint.h"
#include "graft/error.h"
#include "graft/tensors.h"
#include "graft/tokenizer.h"
#include "plugins/search_path.h"
#include "text/utf8.h"

namespace graft {
namespace fs = std::filesystem;
namespace {

/// Fewer say nothing about what a model reads.
constexpr std::int64_t kFewestTokens = 8;

std::string read_file(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::ostringstream text;
  if (in) text << in.rdbuf();
  if (!in) throw Error(ErrorKind::usage, "the file cannot be read").at(quote(file.string()));
  return text.str();
}

/// What is no text would quantize a model by noise.
void require_calibration_text(std::string_view text) {
  try {
    require_text(text);
  } catch (Error& error) {
    throw error.hint("give plain text, JSON lines (.jsonl) or token ids (.safetensors)");
  }
}

void require_some(const at::Tensor& ids, const CalibrationSize& size) {
  if (ids.numel() < kFewestTokens)
    throw Error(ErrorKind::usage, "the calibration text is too short")
        .expected("at least " + std::to_string(kFewestTokens) + " tokens, better " +
                  std::to_string(size.samples * size.length))
        .found(std::to_string(ids.numel()));
  // The first and the last may be a tokenizer's own.
  const auto* first = ids.const_data_ptr<std::int64_t>() + 1;
  const auto* end = first + ids.numel() - 2;
  if (std::all_of(first, end, [=](std::int64_t id) { return id == *first; }))
    throw Error(ErrorKind::usage, "the calibration text is one token over and over")
        .expected("different tokens")
        .found(std::to_string(end - first) + " times token " + std::to_string(*first))
        .hint("give text such as the model will read");
}

/// The turns of a chat, {"messages": [{"role": ..., "content": ...}, ...]}.
std::vector<ChatMessage> messages_of(const Value& row) {
  std::vector<ChatMessage> out;
  for (const auto& message : row.at("messages").as_array())
    out.push_back({message.at("role").as_string(), message.at("content").as_string()});
  return out;
}

std::string text_of_lines(const Tokenizer& tokenizer, const std::string& lines) {
  std::string out;
  std::istringstream in(lines);
  std::string line;
  for (std::size_t number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      const Value row = parse_json(line);
      out += !row.find("text") && row.find("messages") ? tokenizer.chat_text(messages_of(row))
                                                       : row.at("text").as_string() + "\n";
    } catch (Error& error) {
      throw error.at("line " + std::to_string(number));
    }
  }
  return out;
}

/// Whether a sample is one token over and over, as padding is.
bool is_padding(const at::Tensor& sample) {
  return sample.size(0) > 1 && sample.eq(sample[0]).all().item<bool>();
}

CalibrationText read_ids(const fs::path& file, const CalibrationSize& size) {
  const Checkpoint input = Checkpoint::open_file(file);
  const TensorInfo* info = input.find("input_ids");
  if (!info) throw Error(ErrorKind::usage, "there is no tensor 'input_ids'");
  if (info->dtype != Dtype::I64 || info->shape.size() != 2)
    throw Error(ErrorKind::usage, "'input_ids' cannot be used")
        .expected("[B, T] int64")
        .found(std::to_string(info->shape.size()) + " dimensions of " +
               std::string(name_of(info->dtype)));
  auto all = at::empty(info->shape, at::kLong);
  input.read(*info, all.mutable_data_ptr());
  const auto samples = std::min(size.samples, all.size(0));
  require_some(all.narrow(0, 0, samples).contiguous(), size);
  CalibrationText out;
  std::vector<std::int64_t> used, held_out;
  for (std::int64_t i = 0; i < all.size(0) && i < 2 * samples; ++i) {
    if (!is_padding(all[i]))
      (i < samples ? used : held_out).push_back(i);
    else if (i < samples)
      ++out.left_out;
  }
  if (used.empty()) throw Error(ErrorKind::usage, "each sample is one token over and over");
  out.ids = all.index_select(0, at::tensor(used));
  out.held_out = all.index_select(0, at::tensor(held_out, at::kLong));
  return out;
}

/// What the tokenizer puts before and after a text: [CLS] and [SEP], <s>, or nothing.
std::pair<std::vector<std::int64_t>, std::vector<std::int64_t>> special_tokens_around(
    const Tokenizer& tokenizer) {
  const auto plain = tokenizer.encode("a", false), whole = tokenizer.encode("a", true);
  const auto found = std::search(whole.begin(), whole.end(), plain.begin(), plain.end());
  if (found == whole.end()) return {};
  return {{whole.begin(), found}, {found + static_cast<std::ptrdiff_t>(plain.size()), whole.end()}};
}

/// How many samples each file gives: its share, at least one.
std::vector<std::int64_t> shares_of(const std::vector<CalibrationFile>& files,
                                    std::int64_t samples) {
  if (files.empty()) throw Error(ErrorKind::usage, "there is no calibration file");
  const auto count = static_cast<std::int64_t>(files.size());
  if (samples < count)
    throw Error(ErrorKind::usage, "there are more calibration files than samples")
        .expected("at least " + std::to_string(count) + " samples")
        .found(std::to_string(samples))
        .hint("give more --samples");
  double sum = 0;
  for (const auto& file : files) {
    if (!(file.weight > 0) || !std::isfinite(file.weight))
      throw Error(ErrorKind::usage, "a calibration file has no share of the samples")
          .at("calibration file " + quote(file.path.string()))
          .expected("a weight that is finite and more than 0")
          .found(std::to_string(file.weight));
    sum += file.weight;
  }
  // Each boundary is rounded, so that the shares add up.
  std::vector<std::int64_t> out;
  double before = 0;
  std::int64_t given = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    before += files[static_cast<std::size_t>(i)].weight;
    const auto end = std::llround(before / sum * static_cast<double>(samples));
    out.push_back(std::clamp<std::int64_t>(end - given, 1, samples - given - (count - 1 - i)));
    given += out.back();
  }
  return out;
}

constexpr std::pair<Recipe, std::string_view> kRecipes[] = {
    {Recipe::fast, "fast"}, {Recipe::standard, "default"}, {Recipe::best, "best"}};

/// Where windows of a text lie, evenly spread, and those between them that hold out what
/// calibration has not seen.
class Windows {
 public:
  Windows(const Tokenizer& tokenizer, std::string_view text, const CalibrationSize& size)
      : ids_(tokenizer.encode(text, false)) {
    const auto all = static_cast<std::int64_t>(ids_.size());
    require_some(at::tensor(at::ArrayRef<std::int64_t>(ids_)), size);
    std::tie(before_, after_) = special_tokens_around(tokenizer);
    const auto special = static_cast<std::int64_t>(before_.size() + after_.size());
    length_ = std::clamp(size.length - special, std::int64_t{1}, all);
    samples_ = std::min(size.samples, all / length_);
    step_ = all / samples_;
  }

  at::Tensor used() const { return cut(samples_, 0, length_); }
  /// One in the middle of each gap, where gaps are large enough to say something.
  at::Tensor held_out() const {
    const auto gap = step_ - length_, length = std::min(gap, length_);
    return length < kFewestTokens ? cut(0, 0, length_)
                                  : cut(samples_, length_ + (gap - length) / 2, length);
  }

 private:
  at::Tensor cut(std::int64_t count, std::int64_t offset, std::int64_t length) const {
    const auto special = static_cast<std::int64_t>(before_.size() + after_.size());
    auto out = at::empty({count, length + special}, at::kLong);
    auto* to = out.mutable_data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < count; ++i) {
      to = std::copy(before_.begin(), before_.end(), to);
      to = std::copy_n(ids_.begin() + i * step_ + offset, length, to);
      to = std::copy(after_.begin(), after_.end(), to);
    }
    return out;
  }

  std::vector<std::int64_t> ids_, before_, after_;
  std::int64_t length_ = 0, samples_ = 0, step_ = 0;
};

CalibrationText read_one(const fs::path& model_folder, const fs::path& file,
                         const CalibrationSize& size) {
  if (file.extension() == ".safetensors") return read_ids(file, size);
  auto text = read_file(file);
  const auto tokenizer = Tokenizer::open(model_folder);
  if (file.extension() == ".jsonl") text = text_of_lines(tokenizer, text);
  require_calibration_text(text);
  const Windows windows(tokenizer, text, size);
  CalibrationText out;
  out.ids = windows.used();
  out.held_out = windows.held_out();
  return out;
}

}  // namespace

std::string_view word_of(Recipe recipe) {
  return std::find_if(std::begin(kRecipes), std::end(kRecipes), [=](const auto& row) {
           return row.first == recipe;
         })->second;
}

Recipe parse_recipe(std::string_view word) {
  for (const auto& [recipe, own] : kRecipes)
    if (own == word) return recipe;
  throw Error(ErrorKind::usage, "no such recipe")
      .at("--recipe")
      .expected("fast, default or best")
      .found(quote(std::string(word)));
}

at::Tensor calibration_ids(const Tokenizer& tokenizer, std::string_view text,
                           const CalibrationSize& size) {
  require_calibration_text(text);
  return Windows(tokenizer, text, size).used();
}

CalibrationText read_calibration_files(const fs::path& model_folder,
                                       const std::vector<CalibrationFile>& files,
                                       const CalibrationSize& size) {
  const auto shares = shares_of(files, size.samples);
  CalibrationText out;
  std::vector<at::Tensor> ids, held_out;
  std::int64_t held_length = size.length;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const auto& file = files[i].path;
    try {
      auto read = read_one(model_folder, file, {shares[i], size.length});
      if (i > 0 && read.ids.size(1) != ids.front().size(1))
        throw Error(ErrorKind::usage, "the files give samples of different lengths")
            .expected(std::to_string(ids.front().size(1)) + " tokens, as " +
                      quote(files.front().path.string()) + " does")
            .found(std::to_string(read.ids.size(1)))
            .hint("give a --seq-len that all of them have");
      out.samples.push_back(read.ids.size(0));
      out.left_out += read.left_out;
      ids.push_back(std::move(read.ids));
      if (read.held_out.size(0) == 0) continue;
      held_length = std::min(held_length, read.held_out.size(1));
      held_out.push_back(std::move(read.held_out));
    } catch (Error& error) {
      throw error.at("calibration file " + quote(file.string()));
    }
  }
  out.ids = at::cat(ids);
  out.held_out = at::empty({0, 0}, at::kLong);
  for (auto& windows : held_out) windows = windows.narrow(1, 0, held_length);
  if (!held_out.empty()) out.held_out = at::cat(held_out);
  return out;
}

fs::path default_calibration_file() {
  const auto file = folder_of_libgraft() / "graft" / "text" / "calibration.txt";
  std::error_code ignored;
  if (!fs::is_regular_file(file, ignored))
    throw Error(ErrorKind::resource, "the calibration text that comes with graft is not there")
        .expected(quote(file.string()))
        .hint("give a text of your own with --calibration FILE, or install graft again");
  return file;
}

}  // namespace graft
