#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cli/conformance/process_state.h"
#include "graft/plugins.h"
#include "graft/quantizer.h"

// What `graft plugins test` asks of any plugin. Each check runs in a process of its own, so that
// one that crashes is a failed check like others.
namespace graft::cli {

/// A method of the plugin under one variant of its settings: the defaults, or one choice of one
/// option.
struct Subject {
  std::string method, module_class, device;  ///< as the claim names them
  Value settings;
  const Quantizer* quantizer = nullptr;
  QuantConfigPtr config;

  std::string name() const { return method + " " + config->summary(); }
};

struct Tried {
  const PluginLibrary* library = nullptr;
  std::vector<Subject> subjects;
  c10::Device device = at::kCPU;           ///< that modules are moved to
  ProcessState before;                     ///< of the process, before the plugin was loaded
  std::set<std::string> operators_before;  ///< "namespace::name"
};

/// A requirement as a sentence; `run` throws an exception whose text says how it is broken.
struct Check {
  const char* sentence;
  void (*run)(const Tried& tried);
};

/// Claims, settings, operators: what crosses the border. The first one is that the plugin is
/// loaded.
std::vector<Check> border_checks();
/// Building, filling, saving: what files and memory hold.
std::vector<Check> storage_checks();
/// Results of forward.
std::vector<Check> forward_checks();
/// Threads, and what is left behind.
std::vector<Check> process_checks();

/// Throws what a broken requirement says.
[[noreturn]] void broken(const std::string& what);

/// Every subject of the library.
std::vector<Subject> subjects_of(const PluginLibrary& library);
/// "namespace::name" of all operators that are registered now.
std::set<std::string> operators_now();

/// A module of the class that the subject claims.
ModuleSpec module_spec(const Subject& subject, std::int64_t in_features, std::int64_t out_features,
                       bool bias, at::ScalarType dtype = at::kFloat);
/// Shapes that a fast kernel's blocks do not divide, and one that they do.
std::vector<ModuleSpec> trial_specs(const Subject& subject);

/// Random numbers that do not touch the generator of the process.
at::Tensor random_normal(at::IntArrayRef shape, std::uint64_t seed);
GroupMember dense_member(const Subject& subject, const ModuleSpec& spec, std::uint64_t seed);

/// A filled module: quantized from random weights, or, of a method that needs calibration, filled
/// with random tensors as tensors() describes them. nullptr when the plugin refuses this one.
std::shared_ptr<nn::Block> filled_module(const Subject& subject, const ModuleSpec& spec,
                                         std::uint64_t seed);
/// The module's result; the module is a nn::Unary.
at::Tensor forward(nn::Block& module, const at::Tensor& x);
/// Bit for bit, NaN included, wherever they are.
bool same_bits(const at::Tensor& a, const at::Tensor& b);

/// Calls `body` for each subject and each of its trial specs, with what is thrown naming both.
void for_each_trial(
    const Tried& tried,
    const std::function<void(const Subject& subject, const ModuleSpec& spec)>& body);

}  // namespace graft::cli
