#include <cstdio>
#include <memory>

#include "cli/program.h"

namespace graft::cli {
namespace {

Value claims_of(const PluginLibrary& library) {
  Value::Array rows;
  for (const auto& claim : library.claims()) {
    Value row;
    row.set("method", claim.method);
    row.set("module_class", claim.module_class);
    row.set("device", claim.device);
    row.set("priority", static_cast<std::int64_t>(claim.priority));
    rows.push_back(std::move(row));
  }
  return rows;
}

void list(Program& program) {
  const auto& plugins = program.host().plugins();
  if (program.globals.json) {
    Value::Array rows;
    for (const auto& verdict : plugins.verdicts()) {
      Value row;
      row.set("file", verdict.file.string());
      row.set("loaded", verdict.loaded);
      row.set("id", verdict.id);
      row.set("version", verdict.version);
      if (!verdict.loaded) row.set("reason", verdict.reason);
      rows.push_back(std::move(row));
    }
    program.print_json(rows);
    return;
  }
  for (const auto& verdict : plugins.verdicts()) {
    std::printf("%-8s %-18s %-8s %s\n", verdict.loaded ? "loaded" : "refused", verdict.id.c_str(),
                verdict.version.c_str(), quote(verdict.file.string(), 1000).c_str());
    if (!verdict.loaded) std::printf("         %s\n", verdict.reason.c_str());
  }
  if (plugins.verdicts().empty())
    std::printf("no plugin was found; name one with --plugin or a folder with --plugin-path\n");
}

void inspect(Program& program, const std::string& file) {
  const graft_stamp stamp = read_stamp(file);
  program.inspected = std::filesystem::absolute(file);
  program.globals.plugin_files.insert(program.globals.plugin_files.begin(), file);
  const PluginLibrary* library = nullptr;
  std::string reason;
  const auto& plugins = program.host().plugins();
  if (plugins.verdicts().front().loaded)
    library = plugins.libraries().front();
  else
    reason = plugins.verdicts().front().reason;
  Value result;
  result.set("file", file);
  result.set("id", stamp.id);
  result.set("version", stamp.version);
  result.set("abi", std::to_string(stamp.abi_major) + "." + std::to_string(stamp.abi_minor));
  result.set("torch", stamp.torch);
  result.set("cuda", static_cast<std::int64_t>(stamp.cuda));
  result.set("sanitizers", static_cast<std::int64_t>(stamp.sanitizers));
  result.set("loaded", library != nullptr);
  if (!library) result.set("reason", reason);
  if (library) {
    result.set("summary", library->summary());
    result.set("claims", claims_of(*library));
    Value::Array kernels;
    for (const auto& kernel : library->kernels()) kernels.push_back(Value(kernel.op));
    result.set("kernels", std::move(kernels));
  }
  const auto verdict = [&] {
    if (!library) throw Error(ErrorKind::plugin, reason).at(quote(file, 1000));
  };
  if (program.globals.json) {
    program.print_json(result);
    return verdict();
  }
  std::printf("%s %s  ABI %s  torch %s  cuda %s\n", stamp.id, stamp.version,
              result.at("abi").as_string().c_str(), stamp.torch,
              stamp.cuda ? std::to_string(stamp.cuda).c_str() : "none");
  if (!library) return verdict();
  std::printf("%s\n", std::string(library->summary()).c_str());
  for (const auto& claim : library->claims())
    std::printf("claims %s of %s on %s, priority %d\n", claim.module_class, claim.method,
                claim.device, claim.priority);
}

}  // namespace

void add_plugins(CLI::App& app, Program& program) {
  auto* verb = app.add_subcommand("plugins", "What was searched for plugins and what became of it");
  verb->add_subcommand("list", "Each file searched with its verdict (the default)");
  auto* one =
      verb->add_subcommand("inspect", "What a file says of itself, and whether it would be loaded");
  auto file = std::make_shared<std::string>();
  one->add_option("FILE", *file, "A shared library")->required();
  one->callback([file, &program] { inspect(program, *file); });
  add_plugins_test(*verb, program);
  verb->require_subcommand(0, 1);
  for (auto* sub : verb->get_subcommands({})) sub->fallthrough();
  verb->callback([verb, &program] {
    const auto parsed = verb->get_subcommands();
    if (parsed.empty() || parsed[0]->get_name() == "list") list(program);
  });
}

}  // namespace graft::cli
