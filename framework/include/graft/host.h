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
#include "graft/error.h"
#include "graft/job_state.h"
#include "graft/model.h"
#include "graft/model_quantizer.h"
#include "graft/plan.h"
#include "graft/plugins.h"
#include "graft/quantizer.h"
#include "graft/restructuring.h"

namespace graft {

class Ranks;
class Registry;

struct HostOptions {
  std::vector<std::filesystem::path> plugin_files;        ///< searched first
  std::vector<std::filesystem::path> plugin_directories;  ///< then these, then the default path
  bool default_plugin_path =
      true;  ///< GRAFT_PLUGIN_PATH, beside libgraft.so, the install directory
  bool allow_insecure_plugins = false;
  std::vector<std::filesystem::path> registry_files;  ///< rules that win over installed ones
  bool strict = false;  ///< what is unknown, unmatched or unexpected is an error
  /// Who wins when a checkpoint's settings and its tensors contradict each other.
  Trust trust = Trust::neither;
  bool allow_nonfinite = false;  ///< NaN and infinity in scales are let through
  Context context;               ///< for log messages of the host itself
};

struct LoadOptions {
  /// What to make of a dense model, or fields to reconcile with those of the file; null: as the
  /// file says.
  Value quantization_config;
  std::optional<at::ScalarType> dtype;  ///< of kept weights and activations; else the config's
  /// Where the model goes, each module as it is filled; of one that is calibrated, at the end.
  DeviceMap device;
  bool ignore_quantization_config = false;  ///< load as if the file had none
  /// For a quantized checkpoint of an architecture that graft does not have: the dense one it was
  /// made from, whose names tell the modules.
  std::optional<Checkpoint> structure;
  /// Token ids [B, T] int64 of text to quantize a dense checkpoint by (graft/calibration.h);
  /// undefined: none. In memory are its hidden states, and one layer at work on 2048 tokens.
  at::Tensor calibration;
  Recipe recipe = Recipe::standard;  ///< of the calibration; Error(usage) for another without one
  /// Calibrate experts with all tokens, not only those that the router sends them, so that none goes
  /// without; each token runs through every expert. Error(usage) where nothing is calibrated.
  bool all_experts = false;
  /// Steps of polishing behind each layer that is calibrated: codes of all its modules are chosen
  /// anew, together, so that its output comes nearer to that of the dense model; 0: none, 100
  /// does. Some 50 bytes for each weight of a layer are in memory meanwhile.
  /// Error(usage) where nothing is calibrated, and for a method whose codes cannot be moved.
  int polish_steps = 0;
  /// Search scales of inputs (AWQ) by the output of the block around the modules, attention or MLP,
  /// as AutoAWQ does, in place of the modules' own outputs: the block runs again for each choice.
  /// Error(usage) for a method without such scales.
  bool search_by_block = false;
  /// Where a load that calibrates keeps what it has done, group by group, and goes on when the same
  /// load was interrupted: to the same bytes, for any number of threads (graft/job_state.h). The
  /// caller names the folder, and discards it once the model is saved; it is left as it is by every
  /// error. Error(model) says what has changed since then, and Error(resource) that another process
  /// is at work there. No folder: nothing is written.
  JobState state;
  /// The processes that calibrate together (graft/ranks.h), each with options that are equal but
  /// for the context; borrowed. Each gets the whole model, to the same bytes as one process alone.
  /// They run some of the text each, and keep records of their own below TMPDIR but for rank 0,
  /// whose state counts. When one fails, so do all. Null: this one alone.
  Ranks* ranks = nullptr;
  Context context;
};

/// A model, ready to run, with all that saving it needs.
struct LoadedModel {
  std::shared_ptr<Model> model;
  Plan plan;
  Checkpoint checkpoint;                   ///< where it came from
  QuantConfigPtr config;                   ///< of the method; nullptr when nothing is quantized
  /// The method's settings; null when nothing is quantized. save() adds what the plan decided for
  /// single modules.
  Value quantization_config;
  std::vector<GroupReport> calibration{};  ///< what calibration did; empty: there was none
  std::vector<LayerReport> polished{};     ///< the same of polishing
};

/// The host runtime: finds plugins, reads the registry, plans, converts, loads, saves. Holds no
/// global state: several Hosts live side by side, and a Host may die before the models it made.
/// Const functions are thread-safe.
class GRAFT_API Host {
 public:
  explicit Host(HostOptions options = {});
  ~Host();
  Host(Host&&) noexcept;
  Host& operator=(Host&&) noexcept;

  /// A restructuring that rules may name as `replacement`. Before the first plan.
  using Replacement =
      std::function<std::shared_ptr<nn::Block>(const ModuleSpec& spec, const Value& text_config)>;
  void add_replacement(std::string name, Replacement build);
  /// The same with a map of its own between the tensors of both.
  void add_replacement(std::string name, Restructuring how);
  /// The names of the models' own replacements and of those given to add_replacement.
  std::vector<std::string> replacements() const;
  /// Whether anybody here builds that replacement: the application, a plugin or the models.
  bool builds(const std::string& replacement) const;
  /// A registry rule as YAML text of one patch: "{class: A, methods: [m], replacement: B}". Shown
  /// as API.
  void add_patch(const std::string& yaml);

  /// The whole conversion without reading a weight. A folder with config.json alone can be planned.
  /// A dense checkpoint of an architecture that graft does not have is planned from its tensors'
  /// names and shapes, which the plan's notes say; the model it loads as cannot run.
  Plan plan(const Checkpoint& checkpoint, const LoadOptions& options = {}) const;
  /// The plan after the small tensors were read (scales, zero points): with what they say, and with
  /// what load() would refuse as its `refusal`.
  Plan inspect(const Checkpoint& checkpoint, const LoadOptions& options = {}) const;
  /// The settings with bits of their own for modules (Quantizer::with_bits), which together take at
  /// most `bits_per_weight`, scales and zero points included: modules that share an input the same,
  /// and fewer where the model loses least by it on options.calibration (the outputs, of a model
  /// without logits). Takes a calibration with the fast recipe, a run over 512 tokens for each
  /// group, and memory for the whole dense model. Throws Error(usage): a method without other bits,
  /// rules for modules in the settings given, and no bits that few.
  Value choose_bits(const Checkpoint& checkpoint, const LoadOptions& options,
                    double bits_per_weight) const;
  /// Runs all steps: skeleton on meta, plan, check, convert, load, verify.
  LoadedModel load(const std::filesystem::path& folder, const LoadOptions& options = {}) const;
  LoadedModel load(const Checkpoint& checkpoint, const LoadOptions& options = {}) const;
  /// Makes save() write quantized modules in another layout of their method (Quantizer::formats).
  /// Throws Error(usage) when the method has no such layout; one that does not fit a module is
  /// found by save(), before a file is made.
  void set_format(LoadedModel& loaded, const std::string& format) const;
  /// Dense modules with the dequantized weights in `dtype` in place of all quantized ones.
  void dequantize(LoadedModel& loaded, at::ScalarType dtype) const;
  /// Writes a complete Hugging Face folder, or nothing. Copies the tokenizer's and other small
  /// files of the source. Of a model that was quantized already, every tensor and every field of
  /// the config is written as it was.
  void save(const LoadedModel& loaded, const std::filesystem::path& folder,
            const WriteOptions& options = {}) const;
  /// The same through a writer that the caller has had since before the model was made, which keeps
  /// other processes from the output; its inputs are loaded.checkpoint's folder. Commits it.
  void save(const LoadedModel& loaded, FolderWriter& writer) const;

  const Plugins& plugins() const;
  const Registry& registry() const;
  const HostOptions& options() const;

 private:
  friend class ModelQuantizer;
  using GroupObserver = std::function<void(const ModuleGroup&)>;
  LoadedModel load_observed(const Checkpoint& checkpoint, const LoadOptions& options,
                            const GroupObserver& observe) const;
  LoadedModel load_together(const Checkpoint& checkpoint, const LoadOptions& options,
                            const GroupObserver& observe) const;
  struct State;
  std::unique_ptr<State> state_;
};

/// The quantization_config of a checkpoint's config.json: at the top, else of its text part;
/// nullptr when there is none.
GRAFT_API const Value* quantization_config_of(const Value& config);

}  // namespace graft
