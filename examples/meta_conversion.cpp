// A conversion of one's own on the meta device: what to convert and what into is up to you.
//   meta_conversion FOLDER_WITH_CONFIG_JSON
#include <graft/host.h>
#include <graft/module_graph.h>
#include <graft/nn/layers.h>

#include <ATen/ATen.h>
#include <fstream>
#include <iostream>

/// int8 rows; on meta it takes no memory.
class QuantizedModule : public graft::nn::Unary {
 public:
  QuantizedModule(std::int64_t in_features, std::int64_t out_features) : Unary("QuantizedModule") {
    const auto meta = at::TensorOptions(at::kMeta);
    own("weight", weight, at::empty({out_features, in_features}, meta.dtype(at::kChar)));
    own("scales", scales, at::empty({out_features, 1}, meta.dtype(at::kFloat)));
  }
  at::Tensor forward(const at::Tensor& x) override {
    return at::linear(x, weight.to(x.scalar_type()) * scales.to(x.scalar_type()));
  }
  at::Tensor weight, scales;
};

bool should_convert(const std::string& path, const graft::nn::Block& module) {
  return module.class_name() == "Linear" && path != "lm_head";
}

std::size_t resident_megabytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmRSS:")) return std::stoul(line.substr(6)) / 1024;
  return 0;
}

int main(int argc, char** argv) try {
  if (argc != 2) throw graft::Error(graft::ErrorKind::usage, "give a folder with config.json");
  const auto folder = graft::Checkpoint::open(argv[1], {.weights_optional = true});
  const std::size_t at_first = resident_megabytes();
  const auto model = graft::build_model(folder.config(), at::TensorOptions(at::kMeta));
  std::int64_t parameters = 0;
  for (const auto& parameter : model->parameters()) parameters += parameter.numel();

  for (const auto& [path, module] : graft::named_modules(model)) {
    const auto* block = dynamic_cast<const graft::nn::Block*>(module.get());
    if (!block || !should_convert(path, *block)) continue;
    const auto [parent, child_name] = graft::get_module_from_name(model, path);
    graft::ModuleSpec spec;
    block->describe(spec);
    const auto next = std::make_shared<QuantizedModule>(spec.in_features, spec.out_features);
    graft::replace_at(parent, child_name, next);
    std::cout << "Converted " << path << ": " << spec.class_name << " -> " << next->class_name()
              << ", device " << next->weight.device() << "\n";
  }

  const bool grown = resident_megabytes() > at_first + 64;  // the code of LibTorch that ran
  std::cout << parameters / 1'000'000 << " million parameters, "
            << (grown ? "memory taken" : "no memory taken for them") << "\n";
} catch (const graft::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
