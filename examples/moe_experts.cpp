// Experts before and after they are taken apart: the same interface, number and results.
//   moe_experts DENSE_MODEL
#include <graft/host.h>
#include <graft/module_graph.h>
#include <graft/nn/experts.h>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <iostream>

/// The first block of experts of the model.
std::pair<std::string, std::shared_ptr<graft::nn::Experts>> experts_of(
    const std::shared_ptr<graft::Model>& model) {
  for (const auto& [path, module] : graft::named_modules(model))
    if (auto experts = std::dynamic_pointer_cast<graft::nn::Experts>(module))
      return {path, experts};
  throw graft::Error(graft::ErrorKind::usage, "the model has no experts");
}

int main(int argc, char** argv) try {
  if (argc != 2) throw graft::Error(graft::ErrorKind::usage, "give a dense model with experts");
  const c10::InferenceMode inference;
  at::manual_seed(0);
  const graft::Host host;
  const auto model = host.load(argv[1]).model;
  const std::int64_t width = model->text_config().at("hidden_size").as_int();

  const auto [path, original_experts] = experts_of(model);
  std::cout << path << "\n"
            << "Original type: " << original_experts->class_name() << "\n"
            << "Original experts: " << original_experts->size() << "\n";

  // Four tokens, each sent to one expert.
  const at::Tensor x = at::randn({4, width}).to(model->parameters()[0].scalar_type());
  const at::Tensor ids = at::arange(4).remainder(original_experts->size()).unsqueeze(1);
  const at::Tensor weights = at::ones({4, 1});
  const at::Tensor before = original_experts->forward(x, ids, weights);

  // Planning takes them apart; their linear layers are what a method can quantize.
  auto quantizer = graft::ModelQuantizer::from_config(
      host, graft::parse_json(R"({"quant_method": "bitsandbytes", "load_in_4bit": true})"), false);
  quantizer.make_plan(model);

  const auto converted_experts = experts_of(model).second;
  const at::Tensor after = converted_experts->forward(x, ids, weights);
  std::cout << "Converted type: " << converted_experts->class_name() << "\n"
            << "Converted experts: " << converted_experts->size() << "\n"
            << "Output shape before and after: " << before.sizes() << " " << after.sizes() << "\n"
            << "Same numbers: " << (at::allclose(after, before, 1e-3, 1e-5) ? "yes" : "no") << "\n";
} catch (const graft::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
