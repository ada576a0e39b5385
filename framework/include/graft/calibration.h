#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "graft/export.h"
#include "graft/quantizer.h"
#include "graft/value.h"

namespace graft {

class Tokenizer;

/// What calibration did for modules that share an input.
struct GroupReport {
  std::vector<std::string> modules;
  std::int64_t tokens = 0;  ///< rows of input that they saw
  /// How far outputs are from those of the dense weights: tr(D H D^T) / tr(W H W^T) over the group,
  /// D = W - quantized, H the second moment of the input. Negative: there were no tokens, or numbers
  /// that are not finite.
  double relative_error = -1;
  std::vector<double> module_errors;  ///< the same of each module; empty: relative_error is negative
  std::string fallback;  ///< why a plainer way was taken; empty: it was not
  double seconds = 0;    ///< of quantizing, without the model's own forward
};

/// What polishing did for a layer: it chooses the codes of all modules of it anew, together, so
/// that the layer's output comes nearer to that of the dense model.
struct LayerReport {
  std::size_t layer = 0;
  std::vector<std::string> modules;
  /// Mean over the tokens of samples that it did not see of |y - dense|^2 / |dense|^2, y the
  /// output; the second with the codes that it chose, also where they were not kept. NaN: there
  /// was too little text to measure.
  double error_before = std::numeric_limits<double>::quiet_NaN();
  double error_after = std::numeric_limits<double>::quiet_NaN();
  double changed = 0;  ///< share of the codes
  std::string left;    ///< why codes stay as they were; empty: they do not
  double seconds = 0;
};

/// As a JSON object with the fields of the struct; "left" null when it is empty, errors null when
/// they are not finite.
GRAFT_API Value to_value(const LayerReport& report);

/// "groups", each with "modules", "tokens", "relative_error" (null where it is negative),
/// "module_errors", "fallback" (null: there was none), "seconds".
GRAFT_API Value to_value(const std::vector<GroupReport>& report);

/// "fast", "default" or "best".
GRAFT_API std::string_view word_of(Recipe recipe);
/// Throws Error(usage) for another word.
GRAFT_API Recipe parse_recipe(std::string_view word);

/// How much text is used.
struct CalibrationSize {
  std::int64_t samples = 32;  ///< at most
  std::int64_t length = 512;  ///< tokens of each
};

/// Token ids [B, T] int64 of windows spread evenly over `text`, each between the special tokens
/// that the tokenizer puts around a text; T = size.length, those included, or all of a text that is
/// shorter. Throws Error(usage) for fewer than eight tokens, one token alone, and no text.
GRAFT_API at::Tensor calibration_ids(const Tokenizer& tokenizer, std::string_view text,
                                     const CalibrationSize& size);

/// A file to calibrate with, and its share of the samples when there are several.
struct CalibrationFile {
  std::filesystem::path path;
  double weight = 1;  ///< more than 0
};

/// What files give to calibrate with, and what of them is left.
struct CalibrationText {
  at::Tensor ids;             ///< [B, T] int64, those of one file after those of the one before
  at::Tensor held_out;        ///< [b, T'] int64 of the same text, none of it in `ids`; b may be 0
  std::int64_t left_out = 0;  ///< samples of one token over and over, as padding is, that ids lacks
  std::vector<std::int64_t> samples;  ///< in `ids`, of each file
};

/// The same from files: plain text; JSON lines (.jsonl), each with a field "text", or "messages",
/// turns with "role" and "content" that the model's chat template makes a text of; or a safetensors
/// file with `input_ids` [B, T] int64, of which the first rows are taken as they are, and the next
/// ones held out. Text is read by the tokenizer of `model_folder`. Files share `size.samples` by
/// their weights, at least one each. Throws an Error naming the file; also when it gives samples of
/// another length than the ones before it.
GRAFT_API CalibrationText read_calibration_files(const std::filesystem::path& model_folder,
                                                 const std::vector<CalibrationFile>& files,
                                                 const CalibrationSize& size);

/// The text that comes with graft, English of the public domain; beside libgraft. Throws
/// Error(resource) when it is not there.
GRAFT_API std::filesystem::path default_calibration_file();

}  // namespace graft
