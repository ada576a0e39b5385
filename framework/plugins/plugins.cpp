#include "graft/plugins.h"

#include <algorithm>
#include <utility>

#include "plugins/library.h"
#include "plugins/search_path.h"
#include "plugins/vetting.h"

namespace graft {
namespace fs = std::filesystem;

Plugins Plugins::find(const PluginSearch& search, const Context& context) {
  Plugins plugins;
  const auto look_at = [&](const fs::path& file, bool named) {
    std::error_code failed;
    PluginVerdict verdict;
    verdict.file = fs::absolute(file, failed);
    verdict.named = named;
    const VettedFile vetted = vet(verdict.file, search.allow_insecure);
    verdict.id = vetted.stamp.id;
    verdict.version = vetted.stamp.version;
    if (vetted.refusal) {
      verdict.reason = vetted.refusal->reason;
    } else {
      const auto opened = PluginTable::of_process().open(vetted, context);
      if (const auto* library = std::get_if<const PluginLibrary*>(&opened)) {
        verdict.loaded = true;
        auto& all = plugins.libraries_;
        if (std::find(all.begin(), all.end(), *library) == all.end()) all.push_back(*library);
      } else {
        verdict.reason = std::get<Refusal>(opened).reason;
      }
    }
    plugins.verdicts_.push_back(std::move(verdict));
  };

  for (const auto& file : search.files) look_at(file, true);
  for (const auto& folder : plugin_folders(search)) {
    std::string problem;
    const auto files = plugin_files(folder.path, problem);
    std::error_code failed;
    if (!problem.empty() && (folder.required || fs::exists(folder.path, failed)))
      plugins.verdicts_.push_back(
          {folder.path, folder.required, false, "", "", "cannot be searched: " + problem});
    for (const auto& file : files) look_at(file, false);
  }
  return plugins;
}

}  // namespace graft
