#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "graft/comparison.h"
#include "graft/export.h"
#include "graft/host.h"
#include "graft/value.h"

namespace graft {

/// A text that a report speaks of.
struct ReportedText {
  std::string file;           ///< its name without folders
  at::Tensor ids;             ///< [B, T] int64, as the model got them
  std::int64_t left_out = 0;  ///< samples of one token over and over that were not used
};

/// What a report says beside what the quantized model itself tells.
struct ReportInput {
  std::string model;       ///< name of the folder it was made from, without those around it
  std::string base_model;  ///< "org/name"; empty: not known
  Value call;              ///< the options that decided what was made
  std::optional<ReportedText> calibration;
  std::optional<ReportedText> measured_on;  ///< what `measured` is over
  std::optional<Comparison> measured;
};

/// graft-report.json of a model that was quantized: what docs/cli.md lists. Numbers are rounded to
/// the digits that the page and the card show. Nothing in it depends on the moment, the machine's
/// folders or the number of threads.
GRAFT_API Value make_report(const LoadedModel& loaded, const ReportInput& input);

/// A comparison as reports have it: rounded, with its text.
GRAFT_API Value reported(const Comparison& comparison, const ReportedText& text);

/// A report as one page without scripts, for which no network is needed. It shows what is in
/// `report` and nothing else: of make_report, or "model", "reference" and "comparison" alone.
GRAFT_API std::string to_html(const Value& report);

/// A report as a model card: Markdown behind the front matter that model hubs read.
GRAFT_API std::string model_card(const Value& report);

/// Modules whose group was quantized in a plainer way than by the statistics of its input.
GRAFT_API std::int64_t fallback_modules(const std::vector<GroupReport>& groups);

/// "org/name" of a folder in the Hugging Face cache, else of the config's _name_or_path; empty when
/// neither tells.
GRAFT_API std::string base_model_name(const Checkpoint& checkpoint);

}  // namespace graft
