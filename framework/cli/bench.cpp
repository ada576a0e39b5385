#include "cli/program.h"

namespace graft::cli {

void add_bench(CLI::App& app, Program& program) {
  auto* verb = app.add_subcommand("bench", "Measure what this machine does");
  verb->require_subcommand(1);
  add_bench_kernels(*verb, program);
}

}  // namespace graft::cli
