// Converts a model on the meta device: module classes change, no memory is taken.
//   basic_conversion FOLDER_WITH_CONFIG_JSON
#include <graft/host.h>
#include <graft/module_graph.h>

#include <iostream>

void print_experts(const std::shared_ptr<graft::Model>& model) {
  for (const auto& [path, module] : graft::named_modules(model))
    if (path.find("experts") != std::string::npos)
      std::cout << "  " << path << ": " << graft::class_name_of(*module) << "\n";
}

int main(int argc, char** argv) try {
  if (argc != 2) throw graft::Error(graft::ErrorKind::usage, "give a folder with config.json");

  // 1. The model on the meta device
  const auto folder = graft::Checkpoint::open(argv[1], {.weights_optional = true});
  const auto model = graft::build_model(folder.config(), at::TensorOptions(at::kMeta));

  // 2. The quantizer
  const graft::Host host;
  const auto gptq_config =
      graft::parse_json(R"({"quant_method": "gptq", "bits": 4, "group_size": 128})");
  auto quantizer = graft::ModelQuantizer::from_config(host, gptq_config);

  // 3. The conversion
  std::cout << "Before conversion:\n";
  print_experts(model);
  quantizer.convert_model_for_quantization(model);
  std::cout << "\nAfter conversion:\n";
  print_experts(model);
} catch (const graft::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
