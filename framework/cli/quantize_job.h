#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "graft/calibration.h"
#include "graft/checkpoint.h"
#include "graft/value.h"

namespace graft::cli {

class Program;

/// What `graft quantize` was asked for, but where the output goes; `graft resume` reads it from the
/// state of the job.
struct QuantizeJob {
  std::filesystem::path model;  ///< absolute
  Value settings;               ///< quantization_config
  std::string dtype;
  std::uint64_t shard_bytes = WriteOptions{}.shard_bytes;
  bool overwrite = false, ignore_config = false;
  std::vector<CalibrationFile> calibration;  ///< absolute; empty: none, or graft's own text
  CalibrationSize size;
  Recipe recipe = Recipe::standard;
  int polish_steps = 0;
  bool search_by_block = false;
  bool all_experts = false;
  std::filesystem::path eval;  ///< absolute; text to compare with the dense model on; empty: none
  std::optional<double> bits_per_weight;     ///< bits are chosen for each group of modules
  std::optional<double> max_kl;              ///< gate: KL divergence, nats a token
  std::optional<std::int64_t> max_fallback;  ///< gate: modules without usable statistics
};

/// The options that say what to calibrate with and how.
struct CalibrationArguments {
  std::vector<std::string> files;
  std::string recipe = "default";
  int polish_steps = 0;
  bool search_by_block = false;
  bool all_experts = false;
  CalibrationSize size;

  void add_to(CLI::App& verb);
  /// Throws Error(usage) for a recipe that there is not, and for a weight that is none.
  void put_into(QuantizeJob& job) const;
};

/// Where the state of an interrupted job for `output` lies.
std::filesystem::path job_folder(const std::filesystem::path& output);

/// The job and the globals that it depends on, and back into both. Throws Error(usage) when the
/// globals of this call say what the job's do.
Value to_value(const QuantizeJob& job, const Program& program);
QuantizeJob job_from(const Value& call, Program& program);

/// Does the job, or goes on with it when it `resumes`, and prints what came out.
void run(Program& program, const QuantizeJob& job, const std::string& output, bool resumes);

}  // namespace graft::cli
