#include <ATen/ATen.h>

#include <algorithm>
#include <fstream>
#include <sstream>

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

std::size_t count(std::string_view text, std::string_view part) {
  std::size_t found = 0;
  for (auto at = text.find(part); at != text.npos; at = text.find(part, at + part.size())) ++found;
  return found;
}

/// A tokenizer takes any bytes, so what is no text would quantize a model by noise. A few broken
/// characters are in every large collection.
void require_text(std::string_view text) {
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
  const std::size_t zeros = count(text, std::string_view("\0", 1));
  const std::size_t broken = count(to_valid_utf8(text), kReplacement) - count(text, kReplacement);
  if (zeros == 0 && broken <= text.size() / 100) return;
  throw Error(ErrorKind::usage, "this is not text")
      .expected("UTF-8")
      .found(std::to_string(broken) + " places that are not and " + std::to_string(zeros) +
             " zero bytes in " + std::to_string(text.size()) + " bytes")
      .hint("give plain text, JSON lines (.jsonl) or token ids (.safetensors)");
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

std::string text_of_lines(const std::string& lines) {
  std::string out;
  std::istringstream in(lines);
  std::string line;
  for (std::size_t number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      out += parse_json(line).at("text").as_string() + "\n";
    } catch (Error& error) {
      throw error.at("line " + std::to_string(number));
    }
  }
  return out;
}

at::Tensor read_ids(const fs::path& file, const CalibrationSize& size) {
  const Checkpoint input = Checkpoint::open_file(file);
  const TensorInfo* info = input.find("input_ids");
  if (!info) throw Error(ErrorKind::usage, "there is no tensor 'input_ids'");
  if (info->dtype != Dtype::I64 || info->shape.size() != 2)
    throw Error(ErrorKind::usage, "'input_ids' cannot be used")
        .expected("[B, T] int64")
        .found(std::to_string(info->shape.size()) + " dimensions of " +
               std::string(name_of(info->dtype)));
  auto ids = at::empty(info->shape, at::kLong);
  input.read(*info, ids.mutable_data_ptr());
  ids = ids.narrow(0, 0, std::min(size.samples, ids.size(0))).clone();
  require_some(ids, size);
  return ids;
}

/// What the tokenizer puts before and after a text: [CLS] and [SEP], <s>, or nothing.
std::pair<std::vector<std::int64_t>, std::vector<std::int64_t>> special_tokens_around(
    const Tokenizer& tokenizer) {
  const auto plain = tokenizer.encode("a", false), whole = tokenizer.encode("a", true);
  const auto found = std::search(whole.begin(), whole.end(), plain.begin(), plain.end());
  if (found == whole.end()) return {};
  return {{whole.begin(), found}, {found + static_cast<std::ptrdiff_t>(plain.size()), whole.end()}};
}

}  // namespace

at::Tensor calibration_ids(const Tokenizer& tokenizer, std::string_view text,
                           const CalibrationSize& size) {
  require_text(text);
  const auto ids = tokenizer.encode(text, false);
  const auto all = static_cast<std::int64_t>(ids.size());
  require_some(at::tensor(at::ArrayRef<std::int64_t>(ids)), size);
  const auto [before, after] = special_tokens_around(tokenizer);
  const auto special = static_cast<std::int64_t>(before.size() + after.size());
  const auto length = std::clamp(size.length - special, std::int64_t{1}, all);
  const auto samples = std::min(size.samples, all / length);
  const auto step = all / samples;
  auto out = at::empty({samples, length + special}, at::kLong);
  auto* to = out.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < samples; ++i) {
    to = std::copy(before.begin(), before.end(), to);
    to = std::copy_n(ids.begin() + i * step, length, to);
    to = std::copy(after.begin(), after.end(), to);
  }
  return out;
}

at::Tensor read_calibration_file(const fs::path& model_folder, const fs::path& file,
                                 const CalibrationSize& size) {
  try {
    if (file.extension() == ".safetensors") return read_ids(file, size);
    const auto text = read_file(file);
    return calibration_ids(Tokenizer::open(model_folder),
                           file.extension() == ".jsonl" ? text_of_lines(text) : text, size);
  } catch (Error& error) {
    throw error.at("calibration file " + quote(file.string()));
  }
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
