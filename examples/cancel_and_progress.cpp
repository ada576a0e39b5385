// Callbacks, errors and lifetimes.
//   cancel_and_progress DENSE_MODEL
#include <graft/host.h>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <iostream>

int main(int argc, char** argv) try {
  if (argc != 2) throw graft::Error(graft::ErrorKind::usage, "give a dense model");
  const std::string folder = argv[1];
  graft::LoadOptions options;
  options.quantization_config =
      graft::parse_json(R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "colour": 1})");

  // Two hosts side by side share nothing but the plugins that the process has loaded.
  auto host = std::make_unique<graft::Host>();
  graft::Host other;
  other.add_patch("{class: '*', methods: '*', match: '*.up_proj', keep: of the other host}");

  // Messages and progress of one job come to the callbacks of that job, in the calling thread.
  options.context.log = [](graft::LogLevel, std::string_view component, std::string_view message) {
    std::cout << component << ": " << message << "\n";
  };
  std::uint64_t steps = 0, last = 0, total = 0;
  options.context.progress = [&](std::string_view, std::uint64_t done, std::uint64_t all) {
    ++steps;
    last = done;
    total = all;
    return true;  // go on
  };
  const graft::LoadedModel loaded = host->load(folder, options);
  const graft::LoadedModel by_other = other.load(folder, options);
  std::cout << "complete: " << (last == total && steps > 1 ? "yes" : "no") << "\n"
            << "quantized by one host: " << loaded.plan.count(graft::Action::quantize)
            << ", by the other: " << by_other.plan.count(graft::Action::quantize) << "\n";

  // Returning false cancels; nothing is left behind and the host goes on.
  options.context.log = nullptr;
  options.context.progress = [](std::string_view, std::uint64_t done, std::uint64_t) {
    return done == 0;
  };
  try {
    host->load(folder, options);
  } catch (const graft::Error& error) {
    std::cout << "cancelled: "
              << (error.kind() == graft::ErrorKind::interrupted ? "yes" : error.what()) << "\n";
  }

  // Every failure is one type, with a kind to act on and a sentence for people.
  try {
    host->load("nowhere");
  } catch (const graft::Error& error) {
    std::cout << "error: " << error.what() << "\n";
  }

  // A model needs its host no more.
  host.reset();
  const c10::InferenceMode inference;
  graft::Batch batch;
  batch.input_ids = at::arange(8).unsqueeze(0);
  std::cout << "without its host: logits " << loaded.model->forward(batch).sizes() << "\n";
} catch (const graft::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
