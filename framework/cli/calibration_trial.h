#pragma once

#include <cstdint>

#include "graft/host.h"

namespace graft::cli {

/// What a calibrated job costs, by its first layers.
struct CalibrationTrial {
  std::int64_t groups_done = 0, groups = 0;  ///< modules that share an input are a group
  double seconds_spent = 0;
  double seconds = 0;           ///< of the whole job, without reading text and evaluating
  std::uint64_t peak_bytes = 0;  ///< resident memory of the process, of the whole job
};

Value to_value(const CalibrationTrial& trial);

/// Quantizes the first two layers of the checkpoint, or more where layers are small, or all of it
/// when it has no more groups than that, keeps nothing but the state that the job would keep, in a folder that is gone afterwards, and
/// reckons. `options` as for Host::load, with calibration.
CalibrationTrial try_calibration(const Host& host, const Checkpoint& checkpoint,
                                 LoadOptions options);

}  // namespace graft::cli
