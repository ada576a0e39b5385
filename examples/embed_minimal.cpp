// The least: load a folder, convert it to 4 bits, run it.
//   embed_minimal MODEL
#include <graft/host.h>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <iostream>

int main(int argc, char** argv) try {
  if (argc != 2) throw graft::Error(graft::ErrorKind::usage, "give a model folder");
  const graft::Host host;

  graft::LoadOptions options;
  options.quantization_config = graft::parse_json(
      R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"})");
  const graft::LoadedModel loaded = host.load(argv[1], options);
  std::cout << loaded.plan.count(graft::Action::quantize) << " modules in 4 bits\n";

  const c10::InferenceMode inference;
  graft::Batch batch;
  batch.input_ids = at::arange(8).unsqueeze(0);
  const at::Tensor logits = loaded.model->forward(batch);
  std::cout << "logits " << logits.sizes() << ", the next token is "
            << logits[0][-1].argmax().item<std::int64_t>() << "\n";
} catch (const graft::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
