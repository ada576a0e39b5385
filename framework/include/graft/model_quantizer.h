#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "graft/calibration.h"
#include "graft/checkpoint.h"
#include "graft/context.h"
#include "graft/device_map.h"
#include "graft/model.h"
#include "graft/plan.h"

namespace graft {

class Host;

/// Told of each module that was converted. When it throws, that conversion is undone.
using Observer = std::function<void(const std::string& path, const std::string& old_class,
                                    const std::string& new_class, const c10::Device& device)>;

/// The steps of Transformers' HfQuantizer, one by one and under its names, for those who bring
/// their own model; Host::load runs them all. docs/coming-from-transformers.md has the mapping.
///
/// In order: from_config, validate_environment, update_dtype, preprocess_model (converts on meta
/// when pre-quantized), load_weights, postprocess_model (converts here when on the fly). One model
/// per object; not thread-safe; the Host must outlive it, the model need not.
class GRAFT_API ModelQuantizer {
 public:
  /// Finds the method that `quantization_config` names. `pre_quantized`: the settings come from a
  /// checkpoint; without it the method's own default holds. Throws Error(plugin) when no plugin
  /// recognises them and Error(model) when they are invalid.
  static ModelQuantizer from_config(const Host& host, const Value& quantization_config,
                                    std::optional<bool> pre_quantized = std::nullopt);
  ~ModelQuantizer();
  ModelQuantizer(ModelQuantizer&&) noexcept;
  ModelQuantizer& operator=(ModelQuantizer&&) noexcept;

  const std::string& method() const;
  bool pre_quantized() const;
  void set_pre_quantized(bool value);

  /// Throws Error(usage) for a device that is not here or that the method does not serve.
  void validate_environment(const c10::Device& device) const;
  /// The same by name: "cpu", "cuda", "cuda:N", or "auto" for the first CUDA device when LibTorch
  /// can use one and the method serves it, else the CPU. Gives the device, for set_device.
  c10::Device validate_environment(const std::string& device_map) const;
  /// The dtype of the model: as asked for, else of the config, else of the first float tensor.
  at::ScalarType update_dtype(std::optional<at::ScalarType> asked,
                              const Checkpoint& checkpoint) const;

  /// Which modules may be converted, beside the registry's say; set before preprocess_model.
  void set_predicate(std::function<bool(const ModuleSpec&)> predicate);
  void set_observer(Observer observer);
  /// Where the model will run, cpu unless set: claims and rules for its devices count, each of which
  /// validate_environment() has to accept. Set before make_plan, which decides what it leaves open;
  /// the conversion itself runs on the CPU, and dispatch_model moves the filled model.
  void set_device(const DeviceMap& devices);

  /// Plans the conversion of `model` (on meta; dense in memory is allowed on the fly). With a
  /// checkpoint its tensors decide and what is missing is in the plan; without one the rules do.
  const Plan& make_plan(const std::shared_ptr<nn::Block>& model,
                        const Checkpoint* checkpoint = nullptr,
                        std::optional<at::ScalarType> dtype = std::nullopt);
  const Plan& plan() const;

  /// Plans unless done; when pre-quantized also convert_model_for_quantization.
  void preprocess_model(const std::shared_ptr<nn::Block>& model,
                        const Checkpoint* checkpoint = nullptr);
  /// Reads the small tensors of the planned modules and settles what the settings leave open
  /// (Quantizer::settle). preprocess_model does it when it is given a checkpoint, load_weights when
  /// nobody did. Throws Error(model) when tensors and settings contradict each other.
  const Plan& settle(const Checkpoint& checkpoint, const Context& context = {});
  /// Swaps every planned module for its replacement on meta, in place, all or nothing.
  void convert_model_for_quantization(const std::shared_ptr<nn::Block>& model);
  /// Fills the model. A dense checkpoint fills dense modules here; postprocess_model converts them.
  /// Throws Error(usage) for a quantized one that neither make_plan nor preprocess_model was given.
  void load_weights(const std::shared_ptr<nn::Block>& model, const Checkpoint& checkpoint,
                    const Context& context = {});
  /// On the fly: converts the dense modules in memory, in place, each weight freed as it goes. When
  /// it is stopped or anything throws, those converted before stay so; calling it again goes on.
  void postprocess_model(const std::shared_ptr<nn::Block>& model, const Context& context = {});
  /// postprocess_model with calibration text: each of `batches` runs the model once over a batch of
  /// it, and each module is quantized when its inputs come by. They take turns on this thread, each
  /// on a stack of its own. The dense weights stay in memory until all are done; when anything
  /// throws, the model is dense as before. `all_experts` as in LoadOptions.
  std::vector<GroupReport> calibrate(const std::shared_ptr<nn::Block>& model,
                                     const std::vector<std::function<void()>>& batches,
                                     const Context& context = {},
                                     Recipe recipe = Recipe::standard, bool all_experts = false);

  /// Moves the filled modules to the devices of the plan, and makes the model run there: what a layer
  /// is given goes to the layer's device first. Nothing to do where all is on the CPU.
  void dispatch_model(const std::shared_ptr<nn::Block>& model) const;

  /// Whether save() of every converted module gives a checkpoint that others read.
  bool is_serializable() const;
  /// Dense Linear modules again, with the dequantized weights.
  void dequantize(const std::shared_ptr<nn::Block>& model);
  /// Writes the converted model, or the dequantized one, as a Hugging Face folder, or nothing: as
  /// Host::save when its weights came from a checkpoint; of one that was made in memory all
  /// parameters and buffers, under their paths. `config`: its config.json, without settings; null:
  /// that of the checkpoint. Throws Error(usage) where neither is there, before the conversion, and
  /// where preprocess_model was not given the checkpoint that load_weights read.
  void save(const std::shared_ptr<nn::Block>& model, const std::filesystem::path& folder,
            const WriteOptions& options = {}, const Value& config = {}) const;
  /// The settings, as settled.
  const QuantConfigPtr& config() const;
  /// The method's quantization_config. save() adds what the plan decided for single modules.
  Value describe() const;

 private:
  struct State;
  explicit ModelQuantizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace graft
