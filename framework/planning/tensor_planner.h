#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "graft/plan.h"
#include "graft/quantizer.h"
#include "planning/planner.h"
#include "planning/source.h"

namespace graft {

std::string join_path(const std::string& path, const std::string& name);
/// "a.b.c" -> "c"
std::string last_of(const std::string& path);

/// Which tensors of the checkpoint the modules of a plan take, and whether they fit. Writes into
/// the plan what is missing, mismatched or odd. All arguments outlive it.
class TensorPlanner {
 public:
  /// `tied`: the owner of each alias.
  TensorPlanner(const PlanRequest& request, Source& source,
                const std::map<std::string, std::string>& tied, Plan& plan)
      : request_(request), source_(source), tied_(tied), plan_(plan) {}

  /// The tensors present decide: those that a dense module does not have mark a quantized one. With
  /// neither a dense weight nor any of them the settings are believed, and what is missing is
  /// reported; likewise where a quantized module has the tensors of a dense one (unmarked).
  enum class Presence { quantized, dense, neither, unmarked };
  Presence presence(const ModuleSpec& spec, const Quantizer& quantizer,
                    const QuantConfig& config) const;

  /// Sizes and tensors of a module that is to be quantized, or is quantized in the checkpoint.
  void take_quantized(PlanEntry& entry);
  /// Sizes and tensors of a module that stays as it is.
  void take_dense(PlanEntry& entry, const nn::Block& block);
  /// Remembers where the tensors of a restructured module may be in the checkpoint.
  void derive(const PlanEntry& entry);

 private:
  /// A tensor of a restructured module that may be a part of one of the module it replaced.
  struct Derived {
    std::string from;  ///< the model's name of the tensor in one piece
    std::string to;    ///< relative to the replaced module
    nn::Region region;
  };

  void check_shape(const TensorSpec& tensor, const TensorInfo& info);
  /// Refuses 8-bit numbers that have a scale beside them, as other programs' FP8 weights do: taken
  /// for weights, they would be wrong without a sign.
  void check_unscaled(const TensorInfo& info, const std::string& full);
  /// Takes the checkpoint's tensor for the one called `name`. `region`: the tensor is that part.
  void take(PlanEntry& entry, const std::string& name, std::vector<std::int64_t> shape,
            bool float_only, std::optional<nn::Region> region = std::nullopt);
  /// A tensor in one piece, from a checkpoint that has its parts; false when it has none of them.
  bool take_parts(PlanEntry& entry, const std::string& name, const at::Tensor& tensor,
                  const nn::Block& block);
  void add(PlanEntry& entry, const std::string& name, const TensorInfo* info);

  const PlanRequest& request_;
  Source& source_;
  const std::map<std::string, std::string>& tied_;
  Plan& plan_;
  std::map<std::string, Derived> derived_;  // by the model's name of the part
  const nn::Block* parts_of_ = nullptr;     // whose parts_ are
  std::vector<nn::TensorPart> parts_;
};

}  // namespace graft
