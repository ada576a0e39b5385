// Every step from a pre-quantized folder to an answer.
//   complete_pipeline GPTQ_MODEL
#include <graft/host.h>
#include <graft/module_graph.h>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <iostream>

std::shared_ptr<graft::Model> load_pre_quantized_model(const graft::Host& host,
                                                       const graft::Checkpoint& checkpoint) {
  // Step 1: the model on the meta device
  const graft::Value* config = graft::quantization_config_of(checkpoint.config());
  if (!config) throw graft::Error(graft::ErrorKind::usage, "the model is not quantized");
  auto quantizer = graft::ModelQuantizer::from_config(host, *config, /*pre_quantized=*/true);
  const auto dtype = quantizer.update_dtype(std::nullopt, checkpoint);
  const auto model =
      graft::build_model(checkpoint.config(), at::TensorOptions(at::kMeta).dtype(dtype));
  std::cout << "Model initialized on meta device\n";

  // Step 2: the environment
  const auto device = quantizer.validate_environment("auto");
  quantizer.set_device(device);
  std::cout << "Environment validated\n";

  // Step 3: the conversion, before a weight is read
  std::cout << "\nBefore conversion:\n  Linear modules: " << graft::count(model, "Linear") << "\n";
  quantizer.preprocess_model(model, &checkpoint);
  std::cout << "\nAfter conversion:\n  Linear modules: " << graft::count(model, "Linear")
            << "\n  QuantLinear modules: " << graft::count(model, "QuantLinear") << "\n";

  // Step 4: the weights, straight into the converted modules
  quantizer.load_weights(model, checkpoint);
  quantizer.postprocess_model(model);
  model->eval();
  model->to(device);
  return model;
}

int main(int argc, char** argv) try {
  if (argc != 2) throw graft::Error(graft::ErrorKind::usage, "give a GPTQ model");
  const c10::InferenceMode inference;
  const graft::Host host;
  const auto model = load_pre_quantized_model(host, graft::Checkpoint::open(argv[1]));
  graft::Batch batch;
  batch.input_ids = at::arange(1, 9).unsqueeze(0).to(model->parameters().front().device());
  const at::Tensor logits = model->forward(batch);
  std::cout << "\nForward: logits " << logits.sizes() << ", "
            << (logits.isfinite().all().item<bool>() ? "all finite" : "not finite") << "\n";
} catch (const graft::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
