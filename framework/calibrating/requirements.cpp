#include "calibrating/requirements.h"

#include <ATen/core/Tensor.h>

#include "calibrating/calibrate.h"
#include "graft/error.h"
#include "running/input_ids.h"

namespace graft {
namespace {

/// Throws Error(usage) unless there are scales to search by a block's output.
void require_search(const Plan& plan, bool calibrated) {
  for (const auto& entry : plan.entries)
    if (calibrated && entry.action == Action::quantize &&
        entry.quantizer->searches_scales(*entry.config))
      return;
  throw Error(ErrorKind::usage, calibrated ? "the method " + quote(plan.method) +
                                                 " searches no scales of inputs"
                                           : "there is nothing to search: nothing is calibrated")
      .at("--search-by-block")
      .hint("leave out the option, or take a method that searches scales, with calibration text");
}

/// Throws Error(usage) unless the modules that are calibrated can be polished.
void require_polishable(const Plan& plan, bool calibrated, int steps) {
  if (steps < 0)
    throw Error(ErrorKind::usage, "the number of steps of polishing cannot be used")
        .at("--polish")
        .expected("0 or more")
        .found(std::to_string(steps));
  if (!calibrated)
    throw Error(ErrorKind::usage, "there is nothing to polish: nothing is calibrated")
        .at("--polish")
        .hint("give calibration text, or leave out the option");
  for (const auto& entry : plan.entries)
    if (entry.action == Action::quantize && !entry.quantizer->moves_codes(*entry.config))
      throw Error(ErrorKind::usage, "the method " + quote(plan.method) + " cannot be polished")
          .at("--polish")
          .at(entry.spec.path)
          .hint("leave out the option");
}

}  // namespace

bool uses_calibration(const Plan& plan, const at::Tensor& ids, const Model& model) {
  const auto use = use_of_calibration(plan);
  if (!ids.defined()) {
    if (use == CalibrationUse::required)
      throw Error(ErrorKind::usage, "the method " + quote(plan.method) + " needs calibration text")
          .hint("give --calibration FILE, or LoadOptions::calibration");
    return false;
  }
  if (use == CalibrationUse::none) {
    if (plan.count(Action::quantize) == 0) return false;
    throw Error(ErrorKind::usage, "the method " + quote(plan.method) +
                                      " with these settings makes no use of calibration text")
        .hint("leave out --calibration");
  }
  if (ids.dim() != 2 || ids.scalar_type() != at::kLong || ids.numel() == 0)
    throw Error(ErrorKind::usage, "the calibration ids cannot be used")
        .expected("[B, T] int64, not empty")
        .found(std::to_string(ids.dim()) + " dimensions of " +
               std::string(dtype_word(ids.scalar_type())));
  const auto flat = ids.contiguous();
  require_in_vocabulary(
      model, {flat.const_data_ptr<std::int64_t>(), static_cast<std::size_t>(flat.numel())});
  return true;
}

void require_useful(const LoadOptions& options, const Plan& plan, bool calibrated) {
  if (!calibrated && options.recipe != Recipe::standard)
    throw Error(ErrorKind::usage, "the recipe is of no use: nothing is calibrated")
        .at("--recipe")
        .found(std::string(word_of(options.recipe)))
        .hint("give calibration text, or leave out the recipe");
  if (!calibrated && options.all_experts)
    throw Error(ErrorKind::usage, "there are no experts to calibrate: nothing is calibrated")
        .at("--all-experts")
        .hint("give calibration text, or leave out the option");
  if (options.search_by_block) require_search(plan, calibrated);
  if (options.polish_steps != 0) require_polishable(plan, calibrated, options.polish_steps);
}

}  // namespace graft
