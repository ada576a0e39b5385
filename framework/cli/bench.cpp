#include "cli/program.h"

namespace graft::cli {

void add_bench(CLI::App& app, Program& program, bool with_methods) {
  auto* verb = app.add_subcommand("bench", "Measure what this machine does");
  verb->require_subcommand(1);
  add_bench_kernels(*verb, program);
  add_bench_model(*verb, program, with_methods);
}

}  // namespace graft::cli
