#include "cli/program.h"

namespace graft::cli {

void ModelToRun::add_to(CLI::App& verb, Program& program, bool with_methods) {
  verb.add_option("MODEL", model_, "Folder or cached org/name")->required();
  verb.add_option("--dtype", dtype_,
                  "Of activations: float32, bfloat16 or float16; default as the model");
  if (with_methods) method_.add_loading_to(verb, program.host());
}

std::filesystem::path ModelToRun::folder() const { return find_model(model_); }

LoadedModel ModelToRun::load(Program& program) const {
  LoadOptions options;
  options.quantization_config = method_.loading_settings();
  options.dtype = parse_dtype(dtype_);
  options.device = program.device();
  options.context = program.context();
  return program.host().load(folder(), options);
}

}  // namespace graft::cli
