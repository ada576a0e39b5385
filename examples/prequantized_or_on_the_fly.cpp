// Where conversion happens: in preprocess_model when the weights come quantized, in
// postprocess_model when they come dense.
//   prequantized_or_on_the_fly GPTQ_MODEL DENSE_MODEL
#include <graft/host.h>
#include <graft/module_graph.h>

#include <ATen/ATen.h>
#include <iostream>

void load(const graft::Host& host, const graft::Value& config,
          const graft::Checkpoint& checkpoint) {
  auto quantizer = graft::ModelQuantizer::from_config(host, config);
  std::cout << quantizer.method()
            << " pre_quantized: " << (quantizer.pre_quantized() ? "true" : "false") << "\n";
  const auto model = graft::build_model(
      checkpoint.config(),
      at::TensorOptions(at::kMeta).dtype(quantizer.update_dtype(std::nullopt, checkpoint)));
  const auto say = [&](const char* when) {
    std::cout << "  " << when << ": " << graft::count(model, "Linear") << " Linear\n";
  };
  say("skeleton");
  quantizer.preprocess_model(model, &checkpoint);
  say("after preprocess_model");
  quantizer.load_weights(model, checkpoint);
  say("after load_weights");
  quantizer.postprocess_model(model);
  say("after postprocess_model");
}

int main(int argc, char** argv) try {
  if (argc != 3) throw graft::Error(graft::ErrorKind::usage, "give a GPTQ model and a dense one");
  const graft::Host host;
  const auto gptq = graft::Checkpoint::open(argv[1]), dense = graft::Checkpoint::open(argv[2]);
  load(host, *graft::quantization_config_of(gptq.config()), gptq);
  load(host, graft::parse_json(R"({"quant_method": "bitsandbytes", "load_in_4bit": true})"), dense);
} catch (const graft::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
