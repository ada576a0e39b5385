#pragma once

#include <optional>

#include "cli/quantize_job.h"
#include "graft/host.h"
#include "reporting/report.h"

namespace graft::cli {

/// The texts of a job: read before anything is computed, so that what is wrong with them is said at
/// once.
struct JobTexts {
  std::optional<ReportedText> calibration;
  std::optional<ReportedText> measured_on;  ///< windows; absent: nothing is to be measured
};

/// Reads them. Throws Error(usage) when there is nothing to measure --max-kl on, and for a model
/// that has no logits to compare.
JobTexts read_texts(Program& program, const Checkpoint& checkpoint, const LoadOptions& options,
                    const QuantizeJob& job);

/// Compares with the dense model, which is loaded for it, when `texts` say on what.
std::optional<Comparison> measure(Program& program, const LoadedModel& loaded,
                                  const LoadOptions& options, const JobTexts& texts);

/// Throws Error(quality), with the figures, for a gate of the job that fails.
void check_gates(const QuantizeJob& job, const LoadedModel& loaded, const JobTexts& texts,
                 const std::optional<Comparison>& measured);
/// Throws Error(quality) when the mean KL divergence is above `most`, or could not be measured.
void check_kl(const Comparison& found, double most, const std::string& file,
              const std::string& hint);

/// The name of a model's folder, without those around it.
std::string name_of(const std::filesystem::path& folder);

/// "KL 0.0123 nats a token (99th percentile ..., ...), ..." of one line.
std::string in_words(const Comparison& found);

/// graft-report.json, graft-report.html and the model card: README.md, or graft-card.md beside the
/// README.md of the source, which is copied.
void write_report(FolderWriter& writer, const LoadedModel& loaded, const QuantizeJob& job,
                  const JobTexts& texts, const std::optional<Comparison>& measured);

}  // namespace graft::cli
