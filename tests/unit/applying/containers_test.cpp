// LibTorch's own containers and layers in a model that somebody brings.

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/moduledict.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

#include "graft/host.h"
#include "graft/module_graph.h"
#include "graft/nn/layers.h"

#include "model_folder.h"
#include "thrown_by.h"

using namespace graft;
using test::contains;

namespace {

/// Linear layers in each kind of container, one of them twice.
struct Net : nn::Block {
  Net() : Block("Net") {
    torch::nn::Linear shared(64, 64);
    sequence = register_module(
        "sequence", torch::nn::Sequential(torch::nn::Linear(64, 64), torch::nn::ReLU(), shared));
    list = register_module("list", torch::nn::ModuleList(shared));
    dict = register_module("dict", torch::nn::ModuleDict());
    dict->update(std::vector<std::pair<std::string, std::shared_ptr<torch::nn::Module>>>{
        {"head", torch::nn::Linear(torch::nn::LinearOptions(64, 8).bias(false)).ptr()}});
  }
  at::Tensor forward(const at::Tensor& x) {
    const auto middle = unary(list[0]).forward(sequence->forward(x));
    return unary(dict["head"]).forward(middle);
  }
  static nn::Unary& unary(const std::shared_ptr<torch::nn::Module>& module) {
    return dynamic_cast<nn::Unary&>(*module);
  }

  torch::nn::Sequential sequence{nullptr};
  torch::nn::ModuleList list{nullptr};
  torch::nn::ModuleDict dict{nullptr};
};

struct Stubborn : torch::nn::Module {
  Stubborn() : inner(register_module("inner", torch::nn::Linear(8, 8))) {}
  torch::nn::Linear inner;
};

}  // namespace

TEST_CASE("LibTorch's linear layers in its containers are adopted, sharing their weights") {
  const auto net = std::make_shared<Net>();
  const auto weight = net->sequence->ptr<torch::nn::LinearImpl>(0)->weight.detach();
  CHECK(adopt_linears(net) == 4);  // paths, of which two lead to one layer
  CHECK(count(net, "Linear") == 3);
  CHECK(dynamic_cast<nn::Linear&>(*net->sequence->ptr(0)).weight.is_alias_of(weight));
  CHECK(net->sequence->ptr(2) == net->list->ptr(0));
  CHECK(adopt_linears(net) == 0);
}

TEST_CASE(
    "children of a Sequential, ModuleList and ModuleDict are replaced where they are called") {
  const c10::InferenceMode guard;
  at::manual_seed(3);
  const Host host;
  const auto net = std::make_shared<Net>();
  adopt_linears(net);
  const auto x = at::randn({4, 64});
  const auto before = net->forward(x);
  auto quantizer = ModelQuantizer::from_config(
      host, parse_json(R"({"quant_method": "bitsandbytes", "load_in_8bit": true,
                           "graft_int8_forward": "dequant"})"),
      false);
  quantizer.postprocess_model(net);
  CHECK(count(net, "Linear8bitLt") == 3);
  CHECK(net->sequence->ptr(2) == net->list->ptr(0));
  const auto after = net->forward(x);
  CHECK_FALSE(at::equal(after, before));
  CHECK((after - before).abs().max().item<double>() < 0.05 * before.abs().max().item<double>());
  quantizer.dequantize(net);
  CHECK((net->forward(x) - after).abs().max().item<double>() < 1e-4);
}

TEST_CASE("a linear layer that its parent does not let go of is refused, with the line to change") {
  const auto net = std::make_shared<Net>();
  net->register_module("stubborn", std::make_shared<Stubborn>());
  const auto error = test::thrown_by([&] { adopt_linears(net); });
  CHECK(error.kind() == ErrorKind::usage);
  CHECK(contains(error.what(), "stubborn.inner: the child 'inner' of a "));
  CHECK(contains(error.what(), "Stubborn cannot be replaced"));
  CHECK(contains(error.what(), "graft::nn::Slot<graft::nn::Unary> inner{*this, \"inner\", ...};"));
  CHECK(count(net, "Linear") == 0);  // nothing has changed
}

TEST_CASE("a Sequential refuses what it cannot call") {
  const auto net = std::make_shared<Net>();
  const auto text = test::message_of(
      [&] { replace_at(net, "sequence.0", std::make_shared<nn::Block>("NotUnary")); });
  CHECK(
      contains(text, "sequence.0: a NotUnary does not have the interface that a Sequential calls"));
  CHECK(net->sequence->ptr<torch::nn::LinearImpl>(0) != nullptr);
}

TEST_CASE("parameters of LibTorch's own modules are listed in the plan as left alone") {
  const Host host;
  const auto net = std::make_shared<Net>();
  auto quantizer = ModelQuantizer::from_config(
      host, parse_json(R"({"quant_method": "bitsandbytes", "load_in_8bit": true})"), false);
  const Plan& plan = quantizer.make_plan(net);
  REQUIRE(plan.entries.size() == 3);
  CHECK(plan.entries[0].spec.path == "sequence.0");
  CHECK(plan.entries[0].spec.class_name == "torch::nn::LinearImpl");
  CHECK(plan.entries[0].reason == "no graft::nn::Block, left alone");
  CHECK(plan.bytes_before() == 4 * (2 * (64 * 64 + 64) + 64 * 8));
}

TEST_CASE("a module of LibTorch's own cannot be filled from a checkpoint, which planning says") {
  const Host host;
  const auto checkpoint = Checkpoint::open(test::golden("vectors/tiny_llama_dense_fp16"));
  auto quantizer = ModelQuantizer::from_config(
      host, parse_json(R"({"quant_method": "bitsandbytes", "load_in_8bit": true})"), false);
  const auto error =
      test::thrown_by([&] { quantizer.make_plan(std::make_shared<Net>(), &checkpoint); });
  CHECK(error.kind() == ErrorKind::usage);
  CHECK(contains(error.what(),
                 "sequence.0: a torch::nn::LinearImpl is no graft::nn::Block, so a checkpoint "
                 "cannot fill it; derive the class from graft::nn::Block"));
}
