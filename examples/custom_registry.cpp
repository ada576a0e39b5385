// An application registers a replacement for a class of its own, in code or in a YAML file.
//   custom_registry CUSTOM_REGISTRY.YAML
#include <graft/host.h>
#include <graft/module_graph.h>

#include <iostream>

#include "custom_model.h"
#include "special/sequential_custom_experts.h"

void convert(const graft::Host& host, const std::string& quantization_config) {
  auto quantizer = graft::ModelQuantizer::from_config(host, graft::parse_json(quantization_config),
                                                      /*pre_quantized=*/true);
  const auto model = std::make_shared<my::CustomModel>(
      graft::parse_json(R"({"model_type": "custom", "num_experts": 3, "hidden_size": 64})"),
      at::TensorOptions(at::kMeta));
  const std::string before = model->experts->class_name();
  quantizer.convert_model_for_quantization(model);
  std::cout << quantizer.method() << ": " << before << " -> " << model->experts->class_name()
            << "\n";
}

void convert_all(const graft::Host& host) {
  convert(host, R"({"quant_method": "bitsandbytes", "load_in_4bit": true})");
  convert(host, R"({"quant_method": "gptq", "bits": 4, "group_size": 32})");
  convert(host, R"({"quant_method": "awq", "bits": 4, "group_size": 32})");
}

int main(int argc, char** argv) try {
  if (argc != 2) throw graft::Error(graft::ErrorKind::usage, "give custom_registry.yaml");
  using org::example::special::separate_custom_experts;

  std::cout << "Registered in code\n";
  graft::Host in_code;
  in_code.add_replacement("SequentialCustomExperts", separate_custom_experts());
  in_code.add_patch(
      "{class: CustomExpertModule, methods: [bitsandbytes, gptq], "
      "replacement: SequentialCustomExperts}");
  convert_all(in_code);

  std::cout << "Registered in YAML\n";
  graft::HostOptions options;
  options.registry_files = {argv[1]};
  graft::Host in_yaml(options);
  in_yaml.add_replacement("SequentialCustomExperts", separate_custom_experts());
  convert_all(in_yaml);
} catch (const graft::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
