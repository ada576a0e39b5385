#include <graft/host.h>

#include <iostream>

/// Prints the plugins that are found by themselves, and loads a model.
int main(int argc, char** argv) try {
  if (argc != 2) return 2;
  const graft::Host host;
  for (const auto* library : host.plugins().libraries())
    std::cout << library->id() << " " << library->file().string() << "\n";
  const auto loaded = host.load(argv[1]);
  std::cout << loaded.plan.count(graft::Action::quantize) << " quantized modules\n";
} catch (const graft::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
