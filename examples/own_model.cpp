// A model of your own: children in slots, LibTorch's own layers in its containers, a folder of it.
#include <graft/host.h>
#include <graft/module_graph.h>
#include <graft/nn/layers.h>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <iostream>

/// A child that may be replaced is a Slot of a Block: what forward calls is what is registered.
struct Net : graft::nn::Block {
  Net()
      : Block("Net"),
        in(*this, "in", linear()),
        body(register_module("body",
                             torch::nn::Sequential(torch::nn::Linear(64, 64), torch::nn::ReLU(),
                                                   torch::nn::Linear(64, 64)))),
        norm(register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({64})))) {}

  static std::shared_ptr<graft::nn::Linear> linear() {
    auto made = std::make_shared<graft::nn::Linear>(64, 64, /*bias=*/false, at::TensorOptions());
    made->set_tensor("weight", at::randn({64, 64}) / 8);
    return made;
  }
  at::Tensor forward(const at::Tensor& x) { return norm->forward(body->forward(in->forward(x))); }

  graft::nn::Slot<graft::nn::Unary> in;
  torch::nn::Sequential body;
  torch::nn::LayerNorm norm;
};

/// LibTorch's usual way: forward keeps a pointer that nobody else can change.
struct Stubborn : torch::nn::Module {
  Stubborn() : inner(register_module("inner", torch::nn::Linear(64, 64))) {}
  torch::nn::Linear inner;
};

int main(int argc, char** argv) try {
  const c10::InferenceMode inference;
  at::manual_seed(0);
  const graft::Host host;
  const auto net = std::make_shared<Net>();
  std::cout << graft::adopt_linears(net) << " linear layers of LibTorch adopted\n";
  const at::Tensor x = at::randn({4, 64}), before = net->forward(x);

  auto quantizer = graft::ModelQuantizer::from_config(
      host, graft::parse_json(R"({"quant_method": "bitsandbytes", "load_in_8bit": true})"));
  quantizer.set_observer([](const std::string& path, const std::string& old_class,
                            const std::string& new_class, const c10::Device&) {
    std::cout << path << ": " << old_class << " -> " << new_class << "\n";
  });
  quantizer.postprocess_model(net);
  for (const auto& entry : quantizer.plan().entries)
    if (entry.action == graft::Action::keep)
      std::cout << entry.spec.path << ": kept, " << entry.reason << "\n";
  const double distance = (net->forward(x) - before).norm().item<double>();
  std::cout << "relative distance below 0.05: "
            << (distance < 0.05 * before.norm().item<double>() ? "yes" : "no") << "\n";
  if (argc == 2) {
    quantizer.save(net, argv[1], {}, graft::parse_json(R"({"model_type": "net"})"));
    std::cout << "saved: " << graft::Checkpoint::open(argv[1]).tensors().size() << " tensors\n";
  }

  try {
    graft::adopt_linears(std::make_shared<Stubborn>());
  } catch (const graft::Error& error) {
    std::cout << "refused: " << error.what() << "\n";
  }
} catch (const graft::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
