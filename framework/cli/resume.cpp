#include <memory>

#include "cli/program.h"
#include "cli/quantize_job.h"
#include "graft/job_state.h"

namespace graft::cli {
namespace {

struct Arguments {
  std::string output;
  bool overwrite = false;
};

void run(Program& program, const Arguments& given) {
  const auto folder = job_folder(given.output);
  if (!has_job_state(folder))
    throw Error(ErrorKind::usage, "there is nothing to resume")
        .at(quote(given.output))
        .expected("the state of an interrupted job in " + folder.string())
        .found("none")
        .hint(
            "give the OUT of a `graft quantize` with calibration text that was interrupted, or "
            "start it");
  auto job = job_from(read_job_call(folder), program);
  job.overwrite |= given.overwrite;
  run(program, job, given.output, /*resumes=*/true);
}

}  // namespace

void add_resume(CLI::App& app, Program& program) {
  auto given = std::make_shared<Arguments>();
  auto* verb = app.add_subcommand(
      "resume", "Go on with a quantization by calibration text that was interrupted");
  verb->add_option("OUT", given->output, "The folder that it was to make")->required();
  verb->add_flag("--overwrite", given->overwrite, "Replace OUT when it is a model folder");
  verb->footer("graft resume models/quantized");
  verb->callback([given, &program] { run(program, *given); });
}

}  // namespace graft::cli
