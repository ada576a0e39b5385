// The template's plugin with one broken rule, which GRAFT_TEST_FAULT names; without it all are
// kept.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cfenv>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <string_view>
#include <thread>

#include "graft/plugin.h"
#include "linear.h"
#include "operators.h"
#include "quantizer.h"

namespace graft::test::rulebreaker {

using org::example::rtn8::Rtn8Linear;
using org::example::rtn8::Rtn8Quantizer;

bool broken(std::string_view rule) {
  const char* fault = std::getenv("GRAFT_TEST_FAULT");
  return fault && fault == rule;
}

/// What a static object does before any check of the entry.
const bool constructed = [] {
  if (broken("constructor print")) {
    std::puts("good morning");
    std::fflush(stdout);
  }
  if (broken("constructor exit")) std::exit(0);
  if (broken("constructor throw")) throw 42;
  return true;
}();

void block_interrupts() {
  sigset_t interrupts;
  sigemptyset(&interrupts);
  sigaddset(&interrupts, SIGINT);
  pthread_sigmask(SIG_BLOCK, &interrupts, nullptr);
}

class Linear : public Rtn8Linear {
 public:
  using Rtn8Linear::Rtn8Linear;

  using Rtn8Linear::to;
  void to(torch::Device device, bool non_blocking) override {
    Rtn8Linear::to(device, non_blocking);
    if (broken("moved")) set_tensor("scales", scales * 1.01);
    if (broken("moved bits")) set_tensor("scales", scales * 1.00001);
  }

  at::Tensor forward(const at::Tensor& x) override {
    if (broken("empty batch") && x.numel() == 0) std::raise(SIGSEGV);
    if (broken("race")) return through_shared_memory(x);
    auto y = Rtn8Linear::forward(x);
    if (broken("input")) x.zero_();
    if (broken("dtype")) return y.to(at::kFloat);
    if (broken("nan")) return y.nan_to_num();
    if (broken("threads")) return y + 1e-3 * at::get_num_threads();
    if (broken("generator")) at::rand({1});
    if (broken("thread"))
      std::thread([] { std::this_thread::sleep_for(std::chrono::hours(1)); }).detach();
    if (broken("directory")) std::filesystem::current_path("/");
    if (broken("locale")) std::setlocale(LC_ALL, "C.UTF-8");
    if (broken("rounding")) std::fesetround(FE_UPWARD);
    if (broken("signals")) block_interrupts();
    if (broken("shape")) return y.unsqueeze(0);
    return y;
  }

 private:
  at::Tensor through_shared_memory(const at::Tensor& x) {
    static at::Tensor last;
    static std::mutex mutex;  // for the pointer, not for what it stands for
    for (int time = 0; time < 100; ++time) {
      {
        const std::lock_guard lock(mutex);
        last = x;
      }
      std::this_thread::yield();
    }
    at::Tensor mine;
    {
      const std::lock_guard lock(mutex);
      mine = last;
    }
    return Rtn8Linear::forward(mine);
  }
};

class Quantizer : public Rtn8Quantizer {
 public:
  int recognises(const Value& settings) const override {
    return broken("recognition") ? 100 : Rtn8Quantizer::recognises(settings);
  }

  QuantConfigPtr parse(const Value& settings) const override {
    try {
      return Rtn8Quantizer::parse(settings);
    } catch (const Error&) {
      if (!broken("options")) throw;
      return Rtn8Quantizer::parse(Value(Value::Object{{"quant_method", "rtn8"}}));
    }
  }

  Value describe(const QuantConfig& config) const override {
    Value out = Rtn8Quantizer::describe(config);
    static std::int64_t times = 0;
    if (broken("settings")) out.set("times", ++times);
    return out;
  }

  Support supports(const ModuleSpec& spec, const QuantConfig& config) const override {
    if (broken("support")) return Support::no("it is Monday");
    if (broken("exception")) throw 42;
    if (broken("exit")) std::_Exit(0);
    if (broken("hang"))
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    return Rtn8Quantizer::supports(spec, config);
  }

  std::shared_ptr<nn::Block> build(const ModuleSpec& spec, const QuantConfig&) const override {
    auto module = std::make_shared<Linear>(spec);
    if (broken("memory")) module->set_tensor("scales", at::zeros({spec.out_features}));
    return module;
  }

  void fill(nn::Block& module, const QuantConfig& config, const Tensors& tensors) const override {
    Tensors all;
    for (const auto& [name, meta] : module.own_tensors()) {
      const auto* given = tensors.find(name);
      if (given || !broken("missing"))
        all.set(name, tensors.at(name));
      else
        all.set(name, at::zeros(meta.sizes(), meta.scalar_type()));
    }
    Rtn8Quantizer::fill(module, config, all);
  }

  GroupResult quantize(const ModuleGroup& group, const Context&) const override {
    GroupResult result;
    for (const auto& member : group.members) {
      auto module = std::make_shared<Linear>(member.spec);
      const auto& weight = member.dense.at("weight");
      Tensors dense = member.dense;
      if (broken("weight")) dense.set("weight", weight.nan_to_num(0, 1, -1));
      module->quantize(dense);
      if (broken("input weight")) weight.mul_(2);
      if (broken("bounds")) {
        const auto codes = at::empty({weight.numel()}, at::kChar);
        codes.mutable_data_ptr<std::int8_t>()[codes.numel()] = 1;
      }
      result.modules.push_back(std::move(module));
    }
    return result;
  }

  Tensors save(const nn::Block& module, const QuantConfig& config) const override {
    Tensors out = Rtn8Quantizer::save(module, config);
    if (broken("unannounced")) out.set("more", at::zeros({1}));
    if (broken("round trip")) out.set("scales", out.at("scales") * 1.0001);
    return out;
  }
};

struct Plugin {
  static constexpr const char* summary = "breaks a rule";
  static constexpr graft_claim claims[] = {{"rtn8", "Linear", "cpu", 0},
                                           {"rtn8", "Linear", "cpu", 1}};
  static constexpr graft_kernel kernels[] = {{"graft_rtn8::linear", "cpu", ""},
                                             {"graft_rtn8::missing", "cpu", ""}};
  static void init(const Runtime&) {
    org::example::rtn8::register_operators();
    if (!broken("unlisted operator")) return;
    auto* library = new torch::Library(torch::Library::DEF, "graft_rulebreaker", std::nullopt,
                                       __FILE__, __LINE__);
    library->def("hidden(Tensor x) -> Tensor");
  }
  static const graft::Quantizer* quantizer(std::string_view method) {
    static const Quantizer quantizer;
    return method == "rtn8" || broken("query") ? &quantizer : nullptr;
  }
};

GRAFT_STAMP_NOTE(note, stamp_of_this_build("org.graft.test.rulebreaker", "1.0.0"));
using Entry = PluginEntry<Plugin, note>;

graft_status init(const graft_host* host, graft_error* error) noexcept {
  if (broken("terminate")) std::terminate();
  static int times = 0;
  return broken("init") && ++times > 1 ? GRAFT_INTERNAL : Entry::kDescriptor.init(host, error);
}

}  // namespace graft::test::rulebreaker

const graft_plugin* graft_plugin_entry(uint32_t major, uint32_t) noexcept {
  using namespace graft::test::rulebreaker;
  if (major != GRAFT_ABI_MAJOR && !broken("abi")) return nullptr;
  static graft_plugin plugin = Entry::kDescriptor;
  plugin.init = &graft::test::rulebreaker::init;
  if (!broken("claims")) plugin.claim_count = 1;
  if (!broken("unregistered operator")) plugin.kernel_count = 1;
  return &plugin;
}
