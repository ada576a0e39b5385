#include "cli/quantize_report.h"

#include <ATen/core/TensorBody.h>

#include <algorithm>
#include <cstdio>

#include "calibrating/calibrate.h"
#include "cli/program.h"
#include "graft/quantizer.h"
#include "graft/tensors.h"
#include "graft/tokenizer.h"
#include "running/input_ids.h"

namespace graft::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kContext = 512;  ///< as graft eval

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.4g", value);
  return text;
}

/// Says now what comparing would say when the work is done.
void require_comparable(const Checkpoint& checkpoint, const at::Tensor& ids) {
  const auto model = build_model(checkpoint.config(), at::TensorOptions(at::kMeta));
  if (model->output() != Model::Output::logits)
    throw Error(ErrorKind::usage,
                "a " + model->class_name() + " has no logits that could be compared")
        .hint("leave out --eval and --max-kl");
  const auto flat = ids.contiguous();
  require_in_vocabulary(*model, {flat.const_data_ptr<std::int64_t>(),
                                 static_cast<std::size_t>(flat.numel())});
}

}  // namespace

JobTexts read_texts(Program& program, const Checkpoint& checkpoint, const LoadOptions& options,
                    const QuantizeJob& job) {
  JobTexts out;
  const bool measures = !job.eval.empty() || job.max_kl;
  if (!job.eval.empty())
    out.measured_on = {job.eval.filename().string(),
                       evaluation_windows(Tokenizer::open(checkpoint.folder())
                                              .encode(read_text_file(job.eval)),
                                          kContext)};
  auto files = job.calibration;
  if (files.empty() &&
      use_of_calibration(program.host().plan(checkpoint, options)) == CalibrationUse::required) {
    files.push_back({default_calibration_file(), 1});
    program.context().say(LogLevel::info, "calibrate",
                          "with the text that comes with graft; --calibration FILE takes another");
  }
  const CalibrationSize usual;
  if (files.empty() && (job.size.samples != usual.samples || job.size.length != usual.length))
    throw Error(ErrorKind::usage, "the size of the calibration text is of no use: there is none")
        .at("--samples, --seq-len")
        .hint("give calibration text, or leave out the options");
  if (!files.empty()) {
    const auto text = read_calibration_files(checkpoint.folder(), files, job.size);
    std::string name;
    for (std::size_t i = 0; i < files.size(); ++i) {
      const std::string samples =
          std::to_string(text.samples[i]) + (text.samples[i] == 1 ? " sample" : " samples");
      program.context().say(LogLevel::info, "calibrate",
                            samples + " of " + std::to_string(text.ids.size(1)) +
                                " tokens from " + files[i].path.string());
      if (i > 0) name += ", ";
      name += files[i].path.filename().string();
      if (files.size() > 1) name += " (" + samples + ")";
    }
    out.calibration = {name, text.ids, text.left_out};
    if (measures && !out.measured_on && text.held_out.size(0) > 0 && text.held_out.size(1) > 1)
      out.measured_on = {name, text.held_out};
  }
  if (measures && !out.measured_on)
    throw Error(ErrorKind::usage, "there is no text to measure --max-kl on")
        .expected("text that calibration does not use")
        .found(files.empty() ? "no calibration text" : "calibration text of which nothing is left")
        .hint("give --eval FILE");
  if (out.measured_on) require_comparable(checkpoint, out.measured_on->ids);
  return out;
}

std::optional<Comparison> measure(Program& program, const LoadedModel& loaded,
                                  const LoadOptions& options, const JobTexts& texts) {
  if (!texts.measured_on) return std::nullopt;
  LoadOptions dense;
  dense.dtype = loaded.plan.dtype;
  dense.device = options.device;
  dense.ignore_quantization_config = options.ignore_quantization_config;
  dense.context = program.context();
  const auto reference = program.host().load(loaded.checkpoint, dense);
  return compare(reference.model, loaded.model, texts.measured_on->ids, program.context());
}

std::string name_of(const fs::path& folder) {
  const auto path = fs::absolute(folder).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

std::string in_words(const Comparison& found) {
  if (found.not_finite > 0)
    return "logits of " + std::to_string(found.not_finite) + " tokens that are not finite";
  return "KL divergence " + number(found.kl_mean) + " nats a token (99th percentile " +
         number(found.kl_p99) + ", largest " + number(found.kl_max) + "), same next token " +
         number(100 * found.top1_agreement) + " %, perplexity " +
         number(found.perplexity_reference) + " -> " + number(found.perplexity);
}

void check_kl(const Comparison& found, double most, const std::string& file,
              const std::string& hint) {
  if (found.kl_mean <= most) return;  // not when it is NaN
  throw Error(ErrorKind::quality, "the quantized model is too far from the dense one")
      .at("--max-kl")
      .expected("a KL divergence of at most " + number(most) + " nats a token")
      .found(in_words(found) + " over " + with_commas(static_cast<std::uint64_t>(found.tokens)) +
             " tokens of " + quote(file))
      .hint(hint);
}

void check_gates(const QuantizeJob& job, const LoadedModel& loaded, const JobTexts& texts,
                 const std::optional<Comparison>& measured) {
  const auto fallbacks = fallback_modules(loaded.calibration);
  if (job.max_fallback && fallbacks > *job.max_fallback) {
    const auto first = std::find_if(loaded.calibration.begin(), loaded.calibration.end(),
                                    [](const auto& group) { return !group.fallback.empty(); });
    throw Error(ErrorKind::quality, "too many modules were quantized without usable statistics")
        .at("--max-fallback")
        .expected("at most " + std::to_string(*job.max_fallback))
        .found(std::to_string(fallbacks) + ", first " + quote(first->modules.front()) + ": " +
               first->fallback)
        .hint("nothing was written; give more calibration text, or other text");
  }
  if (job.max_kl && measured)
    check_kl(*measured, *job.max_kl, texts.measured_on->file,
             "nothing was written; more bits, smaller groups and more calibration text bring it "
             "down");
}

void write_report(FolderWriter& writer, const LoadedModel& loaded, const QuantizeJob& job,
                  const JobTexts& texts, const std::optional<Comparison>& measured) {
  Value call;
  call.set("quantization_config", job.settings);
  call.set("dtype", std::string(dtype_word(loaded.plan.dtype)));
  call.set("shard_bytes", static_cast<std::int64_t>(job.shard_bytes));
  if (texts.calibration) {
    call.set("samples", job.size.samples);
    call.set("seq_len", job.size.length);
    call.set("recipe", std::string(word_of(job.recipe)));
    if (job.all_experts) call.set("all_experts", true);
    if (job.search_by_block) call.set("search_by_block", true);
    if (job.polish_steps > 0) call.set("polish_steps", job.polish_steps);
  }
  if (job.bits_per_weight) call.set("target_bpw", *job.bits_per_weight);
  if (job.max_kl) call.set("max_kl", *job.max_kl);
  if (job.max_fallback) call.set("max_fallback", *job.max_fallback);
  const std::string base = base_model_name(loaded.checkpoint);
  // In the cache, folders are named by commits.
  const bool cached = !base.empty() && name_of(job.model.parent_path()) == "snapshots";
  const std::string name = cached ? base.substr(base.find('/') + 1) : name_of(job.model);
  const Value report = make_report(
      loaded, {name, base, std::move(call), texts.calibration, texts.measured_on, measured});
  writer.write_text("graft-report.json", to_json(report, 2) + "\n");
  writer.write_text("graft-report.html", to_html(report));
  const fs::path readme = job.model / "README.md";
  std::error_code ignored;
  const bool has_one = fs::is_regular_file(readme, ignored);
  if (has_one) writer.copy_file(readme);
  writer.write_text(has_one ? "graft-card.md" : "README.md", model_card(report));
}

}  // namespace graft::cli
