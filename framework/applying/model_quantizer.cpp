#include "graft/model_quantizer.h"

#include <algorithm>

#include "applying/convert.h"
#include "applying/dequantize.h"
#include "applying/device.h"
#include "applying/saving.h"
#include "applying/swaps.h"
#include "calibrating/calibrate.h"
#include "graft/error.h"
#include "graft/host.h"
#include "graft/module_graph.h"
#include "host_state.h"
#include "planning/placing.h"
#include "planning/settling.h"
#include "plugins/call.h"

namespace graft {
namespace {

/// The device as claims name it.
std::string word_of(const c10::Device& device) {
  return device.is_cuda() ? "cuda" : device.is_cpu() ? "cpu" : device.str();
}

}  // namespace

struct ModelQuantizer::State {
  const Host::State* host = nullptr;
  Method method;
  DeviceMap devices;
  bool pre_quantized = false;
  bool planned = false;
  bool settled = false;
  bool converted = false;
  bool dequantized = false;
  std::optional<Checkpoint> checkpoint;  ///< that weights were loaded from
  const nn::Block* model = nullptr;  ///< the one that was planned; only compared
  Plan plan;
  std::function<bool(const ModuleSpec&)> predicate;
  Observer observer;

  /// `step` comes before the conversion.
  void require_unconverted(const std::string& step) const {
    if (converted)
      throw Error(ErrorKind::usage, step + ": the model is converted already")
          .hint("use a new ModelQuantizer for another model");
  }
  /// `step` goes on with the model that was planned.
  void require_planned(const std::string& step, const nn::Block* given) const {
    if (!planned)
      throw Error(ErrorKind::usage, step + " before preprocess_model: there is no plan yet")
          .hint("call preprocess_model first");
    if (model != given)
      throw Error(ErrorKind::usage, step + ": this is another model than the one that was planned")
          .hint("use one ModelQuantizer for each model");
  }
  bool serves(const c10::Device& where) const {
    return std::any_of(host->claims.begin(), host->claims.end(), [&](const auto& claim) {
      return claim.method == method.name && claim.device == word_of(where);
    });
  }
  void require_served(const c10::Device& device) const {
    if (serves(device)) return;
    throw Error(ErrorKind::usage, "no plugin serves the method " + quote(method.name) +
                                      " on the device " + quote(word_of(device)))
        .hint("use --device cpu");
  }
  /// Where a rule pins another plugin than the one that takes the settings first, those of the one
  /// that builds hold.
  void follow_the_builder() {
    const PlanEntry* built = nullptr;
    for (const auto& entry : plan.entries) {
      if (entry.action != Action::quantize) continue;
      if (entry.plugin == method.plugin_id) return;
      if (!built) built = &entry;
    }
    if (!built) return;
    method.plugin_id = plan.plugin = built->plugin;
    method.quantizer = built->quantizer;
    call_plugin(method.plugin_id, "quantization_config", [&] {
      method.config = method.quantizer->parse(method.settings);
      plan.settings = require_config(method.config, method.plugin_id)->summary();
    });
  }
};

ModelQuantizer::ModelQuantizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
ModelQuantizer::~ModelQuantizer() = default;
ModelQuantizer::ModelQuantizer(ModelQuantizer&&) noexcept = default;
ModelQuantizer& ModelQuantizer::operator=(ModelQuantizer&&) noexcept = default;

ModelQuantizer ModelQuantizer::from_config(const Host& host, const Value& quantization_config,
                                           std::optional<bool> pre_quantized) {
  auto state = std::make_unique<State>();
  state->host = host.state_.get();
  state->method = state->host->find_method(quantization_config);
  state->pre_quantized =
      pre_quantized ? *pre_quantized : call_plugin(state->method.plugin_id, "its defaults", [&] {
        return state->method.quantizer->pre_quantized_by_default();
      });
  return ModelQuantizer(std::move(state));
}

const std::string& ModelQuantizer::method() const { return state_->method.name; }
bool ModelQuantizer::pre_quantized() const { return state_->pre_quantized; }
void ModelQuantizer::set_pre_quantized(bool value) {
  state_->require_unconverted("set_pre_quantized");
  state_->pre_quantized = value;
  state_->planned = false;
}

void ModelQuantizer::validate_environment(const c10::Device& device) const {
  state_->require_served(device);
  require_device(device);
}

c10::Device ModelQuantizer::validate_environment(const std::string& device_map) const {
  c10::Device device = at::kCPU;
  if (device_map == "auto") {
    if (const auto best = best_device(); state_->serves(best)) device = best;
  } else {
    try {
      device = c10::Device(device_map);
    } catch (const c10::Error&) {
      throw Error(ErrorKind::usage, "unknown device")
          .expected("auto, cpu, cuda or cuda:N")
          .found(quote(device_map));
    }
    require_device(device);
  }
  validate_environment(device);
  return device;
}

at::ScalarType ModelQuantizer::update_dtype(std::optional<at::ScalarType> asked,
                                            const Checkpoint& checkpoint) const {
  return asked ? *asked : model_dtype(checkpoint);
}

void ModelQuantizer::set_device(const DeviceMap& devices) {
  state_->require_unconverted("set_device");
  state_->devices = devices;
  state_->planned = false;
}

void ModelQuantizer::set_predicate(std::function<bool(const ModuleSpec&)> predicate) {
  state_->require_unconverted("set_predicate");
  state_->predicate = std::move(predicate);
  state_->planned = false;
}

void ModelQuantizer::set_observer(Observer observer) { state_->observer = std::move(observer); }

const Plan& ModelQuantizer::make_plan(const std::shared_ptr<nn::Block>& model,
                                      const Checkpoint* checkpoint,
                                      std::optional<at::ScalarType> dtype) {
  state_->require_unconverted("make_plan");
  PlanRequest request = state_->host->request();
  request.method = state_->method;
  request.pre_quantized = state_->pre_quantized;
  request.checkpoint = checkpoint;
  request.predicate = state_->predicate;
  request.allow_nonfinite = state_->host->options.allow_nonfinite;
  const Plan before = std::move(state_->plan);
  request.before = &before;
  if (dtype) {
    request.dtype = *dtype;
  } else {
    for (const auto& parameter : model->parameters())
      if (parameter.is_floating_point()) {
        request.dtype = parameter.scalar_type();
        break;
      }
  }
  state_->plan = plan_on(
      state_->devices, model, [&](const c10::Device& device) { return state_->serves(device); },
      [&](const DeviceMap& devices) {
        for (const auto& device : devices.devices()) state_->require_served(device);
        request.devices = devices;
        return graft::make_plan(model, request);
      });
  state_->follow_the_builder();
  state_->planned = true;
  state_->settled = false;
  state_->model = model.get();
  return state_->plan;
}

const Plan& ModelQuantizer::plan() const { return state_->plan; }

void ModelQuantizer::preprocess_model(const std::shared_ptr<nn::Block>& model,
                                      const Checkpoint* checkpoint) {
  state_->require_unconverted("preprocess_model");
  if (!state_->planned || state_->model != model.get())
    make_plan(model, checkpoint);
  else if (checkpoint && state_->plan.bytes_in_checkpoint == 0)
    make_plan(model, checkpoint, state_->plan.dtype);
  if (checkpoint && state_->pre_quantized) settle(*checkpoint);
  if (state_->pre_quantized) convert_model_for_quantization(model);
}

const Plan& ModelQuantizer::settle(const Checkpoint& checkpoint, const Context& context) {
  if (!state_->planned) throw Error(ErrorKind::usage, "settle before make_plan");
  if (state_->pre_quantized && !state_->settled)
    state_->method.config = settle_plan(state_->plan, checkpoint, state_->method.config,
                                        state_->host->options.trust, context);
  state_->settled = true;
  return state_->plan;
}

void ModelQuantizer::convert_model_for_quantization(const std::shared_ptr<nn::Block>& model) {
  state_->require_unconverted("convert_model_for_quantization");
  if (!state_->planned || state_->model != model.get()) make_plan(model);
  state_->plan.check(state_->host->options.strict);
  convert_on_meta(model, state_->plan, state_->observer);
  state_->converted = true;
}

void ModelQuantizer::load_weights(const std::shared_ptr<nn::Block>& model,
                                  const Checkpoint& checkpoint, const Context& context) {
  state_->require_planned("load_weights", model.get());
  if (state_->pre_quantized && !state_->converted)
    throw Error(ErrorKind::usage,
                "load_weights before preprocess_model: the model is not converted yet")
        .hint("call preprocess_model first");
  if (!state_->pre_quantized) {
    state_->require_unconverted("load_weights of a dense checkpoint");
    // The dense model as it is; postprocess_model converts it.
    PlanRequest request = state_->host->request();
    request.checkpoint = &checkpoint;
    request.dtype = state_->plan.dtype;
    request.before = &state_->plan;
    const Plan dense = graft::make_plan(model, request);
    dense.check(state_->host->options.strict);
    state_->checkpoint = checkpoint;
    fill_from(model, dense, checkpoint, context, {}, FillTo::cpu);
    return;
  }
  if (state_->plan.bytes_in_checkpoint == 0)
    throw Error(ErrorKind::usage,
                "load_weights: the plan was made without a checkpoint, so which tensors a module "
                "needs is not known")
        .hint("give the checkpoint to preprocess_model, or to make_plan");
  settle(checkpoint, context);
  state_->checkpoint = checkpoint;
  fill_from(model, state_->plan, checkpoint, context, state_->observer, FillTo::cpu);
}

std::vector<GroupReport> ModelQuantizer::calibrate(const std::shared_ptr<nn::Block>& model,
                                                   const std::vector<std::function<void()>>& batches,
                                                   const Context& context, Recipe recipe,
                                                   bool all_experts) {
  if (state_->pre_quantized)
    throw Error(ErrorKind::usage,
                "calibrate: the settings describe a model that is quantized already")
        .hint("call set_pre_quantized(false) when the model is dense");
  state_->require_unconverted("calibrate");
  tie(model);
  if (const auto name = tensor_on_meta(model); !name.empty())
    throw Error(ErrorKind::usage, "calibrate before load_weights: the tensor has no values")
        .at(name)
        .hint("call load_weights first");
  if (!state_->planned || state_->model != model.get()) make_plan(model);
  state_->plan.check(state_->host->options.strict);
  for (const auto& entry : state_->plan.entries)
    if (is_converted(entry, model))
      throw Error(ErrorKind::usage, "calibrate: a module is converted already")
          .at(entry.spec.path)
          .hint("postprocess_model goes on with a conversion that was interrupted");
  auto report = quantize_calibrated(
      model, state_->plan, {.recipe = recipe, .all_experts = all_experts},
      static_cast<std::int64_t>(batches.size()),
      [&](std::int64_t i, const auto&) { batches[static_cast<std::size_t>(i)](); }, context,
      state_->observer);
  state_->converted = true;
  tie(model);
  verify_filled(model);
  return report.groups;
}

void ModelQuantizer::postprocess_model(const std::shared_ptr<nn::Block>& model,
                                       const Context& context) {
  const bool converts = !state_->pre_quantized && !state_->converted;
  if (!converts) state_->require_planned("postprocess_model", model.get());
  tie(model);
  if (const auto name = tensor_on_meta(model); !name.empty())
    throw Error(ErrorKind::usage, "postprocess_model before load_weights: the tensor has no values")
        .at(name)
        .hint("call load_weights first");
  if (!converts) return;
  if (!state_->planned || state_->model != model.get()) make_plan(model);
  state_->plan.check(state_->host->options.strict);
  if (use_of_calibration(state_->plan) == CalibrationUse::required)
    throw Error(ErrorKind::usage, "the method " + quote(method()) + " needs calibration text")
        .hint("call calibrate, which runs the model over it, in place of postprocess_model");
  quantize_in_place(model, state_->plan, context, state_->observer);
  state_->converted = true;
  tie(model);
  verify_filled(model);
}

void ModelQuantizer::dispatch_model(const std::shared_ptr<nn::Block>& model) const {
  state_->require_planned("dispatch_model", model.get());
  if (const auto name = tensor_on_meta(model); !name.empty())
    throw Error(ErrorKind::usage, "dispatch_model before load_weights: the tensor has no values")
        .at(name)
        .hint("call load_weights first");
  for (const auto& device : state_->plan.devices.devices()) require_device(device);
  move_to_devices(model, state_->plan);
  graft::dispatch_model(model, state_->plan);
}

bool ModelQuantizer::is_serializable() const { return true; }

void ModelQuantizer::dequantize(const std::shared_ptr<nn::Block>& model) {
  if (!state_->converted)
    throw Error(ErrorKind::usage, "dequantize: the model is not converted")
        .hint("call preprocess_model, load_weights and postprocess_model first");
  state_->require_planned("dequantize", model.get());
  if (const auto name = tensor_on_meta(model); !name.empty())
    throw Error(ErrorKind::usage, "dequantize before load_weights: the tensor has no values")
        .at(name)
        .hint("call load_weights first");
  dequantize_in_place(model, state_->plan, state_->plan.dtype);
  state_->converted = false;
  state_->dequantized = true;
}

void ModelQuantizer::save(const std::shared_ptr<nn::Block>& model,
                          const std::filesystem::path& folder, const WriteOptions& options,
                          const Value& config) const {
  state_->require_planned("save", model.get());
  if (!state_->converted && !state_->dequantized)
    throw Error(ErrorKind::usage, "save: the model is not converted yet")
        .hint("call postprocess_model, or calibrate, first");
  if (const auto name = tensor_on_meta(model); !name.empty())
    throw Error(ErrorKind::usage, "save before load_weights: the tensor has no values")
        .at(name)
        .hint("call load_weights first");
  const Checkpoint* checkpoint = state_->checkpoint ? &*state_->checkpoint : nullptr;
  if (!config.is_null() && !config.is_object())
    throw Error(ErrorKind::usage, "save: config").expected("an object").found(to_json(config));
  if (config.is_null() && !checkpoint)
    throw Error(ErrorKind::usage, "save: the model was made in memory, so its config is not known")
        .hint("give the config.json that tells readers what to build: model_type and its sizes");
  if (checkpoint && state_->plan.bytes_in_checkpoint == 0)
    throw Error(ErrorKind::usage,
                "save: the plan was made without the checkpoint that the weights came from, so "
                "what else belongs to the model is not known")
        .hint("give the checkpoint to preprocess_model");
  Plan plan = state_->plan;
  plan.pre_quantized = plan.pre_quantized && state_->converted && checkpoint;
  const ModelToWrite from{
      model, plan, checkpoint, config.is_null() ? checkpoint->config() : config,
      state_->converted ? settings_to_write(plan, state_->method.config, describe()) : Value()};
  auto tensors = tensors_to_write(from);
  std::vector<std::filesystem::path> inputs;
  if (checkpoint) inputs.push_back(checkpoint->folder());
  FolderWriter writer(folder, options, inputs);
  write_model(from, std::move(tensors), state_->host->settings_files(), writer);
}

const QuantConfigPtr& ModelQuantizer::config() const { return state_->method.config; }

Value ModelQuantizer::describe() const {
  return call_plugin(state_->method.plugin_id, "quantization_config",
                     [&] { return state_->method.quantizer->describe(*state_->method.config); });
}

}  // namespace graft
