// A class that is quantized under some methods and left alone under others, by the plugin in
// special/ and the rules that come with it.
//   conditional_conversion FOLDER_OF_THE_PLUGIN
#include <graft/host.h>
#include <graft/module_graph.h>

#include <iostream>

#include "custom_model.h"

int main(int argc, char** argv) try {
  if (argc != 2) throw graft::Error(graft::ErrorKind::usage, "give the folder of the plugin");
  graft::HostOptions options;
  options.plugin_directories = {argv[1]};
  const graft::Host host(options);

  for (const char* config : {R"({"quant_method": "gptq", "bits": 4, "group_size": 32})",
                             R"({"quant_method": "awq", "bits": 4, "group_size": 32})",
                             R"({"quant_method": "bitsandbytes", "load_in_4bit": true})"}) {
    const auto model = std::make_shared<my::CustomModel>(
        graft::parse_json(R"({"model_type": "custom", "num_experts": 3, "hidden_size": 64})"),
        at::TensorOptions(at::kMeta));
    auto quantizer =
        graft::ModelQuantizer::from_config(host, graft::parse_json(config), /*pre_quantized=*/true);
    quantizer.convert_model_for_quantization(model);
    if (graft::count(model, "SpecialLinear") == 0)
      std::cout << quantizer.method() << ": SpecialLinear -> " << model->special->class_name()
                << "\n";
    else
      std::cout << quantizer.method() << ": SpecialLinear remains unchanged\n";
    for (const auto& entry : quantizer.plan().entries)
      if (entry.spec.path == "special") std::cout << "  because " << entry.reason << "\n";
  }
} catch (const graft::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
