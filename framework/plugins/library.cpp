#include "plugins/library.h"

#include <dlfcn.h>

#include <cstddef>
#include <cstring>
#include <string>
#include <string_view>

#include "graft/error.h"
#include "graft/quantizer.h"
#include "plugins/process_host.h"

namespace graft {
namespace fs = std::filesystem;
namespace {

constexpr std::uint32_t kSmallestDescriptor =
    offsetof(graft_plugin, query) + sizeof(graft_plugin::query);
constexpr std::uint32_t kMostClaims = 4096;

using EntryFunction = decltype(graft_plugin_entry);

/// Check 8.
std::optional<Refusal> load(const fs::path& file, boost::dll::shared_library& library) {
  using boost::dll::load_mode::rtld_local;
  using boost::dll::load_mode::rtld_now;
  boost::system::error_code failed;
  library.load(boost::filesystem::path(file.native()), failed, rtld_now | rtld_local);
  if (!failed) return std::nullopt;
  const char* text = ::dlerror();
  return Refusal{"cannot be loaded: " + quote(text ? text : failed.message(), 2000) +
                 "; `ldd -r` on the file lists what it misses"};
}

/// Check 9.
std::optional<Refusal> descriptor_problem(const graft_plugin* plugin, const graft_stamp& stamp) {
  const std::string rebuild = "; rebuild it with this graft";
  if (!plugin)
    return Refusal{"its entry returned nothing for ABI " + std::to_string(GRAFT_ABI_MAJOR) + "." +
                   std::to_string(GRAFT_ABI_MINOR) + ", expected a descriptor" + rebuild};
  if (plugin->size < kSmallestDescriptor)
    return Refusal{"its descriptor has " + std::to_string(plugin->size) +
                   " bytes, expected at least " + std::to_string(kSmallestDescriptor) + rebuild};
  if (!plugin->stamp || std::memcmp(plugin->stamp, &stamp, sizeof(stamp)) != 0)
    return Refusal{"its descriptor carries another stamp than the file" + rebuild};
  const char* missing = !plugin->summary                           ? "summary"
                        : !plugin->init                            ? "init"
                        : !plugin->query                           ? "query"
                        : plugin->kernel_count && !plugin->kernels ? "kernels"
                                                                   : nullptr;
  if (missing)
    return Refusal{"its descriptor lacks " + std::string(missing) + ", which is required" +
                   rebuild};
  return std::nullopt;
}

/// Check 10, the part that is data.
std::optional<Refusal> claims_problem(const graft_plugin& plugin) {
  if (plugin.claim_count == 0 || !plugin.claims)
    return Refusal{"it claims no module class, expected at least one; fill in Plugin::claims"};
  if (plugin.claim_count > kMostClaims)
    return Refusal{"it has " + std::to_string(plugin.claim_count) + " claims, expected at most " +
                   std::to_string(kMostClaims) + "; rebuild it with this graft"};
  for (std::uint32_t i = 0; i < plugin.claim_count; ++i) {
    const auto& claim = plugin.claims[i];
    const std::string which = "its claim " + std::to_string(i);
    if (!claim.method || !*claim.method || !claim.module_class || !*claim.module_class)
      return Refusal{which + " names no method or no module class; fill in Plugin::claims"};
    const std::string_view device = claim.device ? claim.device : "";
    if (device != "cpu" && device != "cuda")
      return Refusal{which + " is for device " + quote(device) +
                     ", expected 'cpu' or 'cuda'; correct Plugin::claims"};
  }
  return std::nullopt;
}

std::string_view status_text(graft_status status) {
  switch (status) {
    case GRAFT_BAD_INPUT:
      return "bad input";
    case GRAFT_BAD_CONFIG:
      return "bad configuration";
    case GRAFT_NO_RESOURCE:
      return "no resource";
    default:
      return "a defect";
  }
}

/// Check 10, the part that runs.
std::optional<Refusal> init_problem(const graft_plugin& plugin) {
  graft_error error{};
  error.size = sizeof(error);
  const graft_status status = plugin.init(&process_host(), &error);
  if (status == GRAFT_OK) return std::nullopt;
  const std::string_view message(error.message, strnlen(error.message, sizeof(error.message)));
  const std::string said = message.empty() ? "it gave no reason" : quote(message, 1000);
  if (status == GRAFT_REFUSED)
    return Refusal{"it declined this machine: " + said + "; run without it"};
  return Refusal{"its init failed (" + std::string(status_text(status)) + "): " + said +
                 "; report it to its author, or run without it"};
}

}  // namespace

PluginLibrary::PluginLibrary(fs::path file, const graft_plugin* plugin)
    : file_(std::move(file)), plugin_(plugin) {
  fs::path registry = file_;
  std::error_code absent;
  if (fs::is_regular_file(registry.replace_extension(".yaml"), absent)) registry_file_ = registry;
}

const Quantizer* PluginLibrary::quantizer(const std::string& method) const {
  return static_cast<const Quantizer*>(query(kQuantizerInterface, method.c_str()));
}

PluginTable& PluginTable::of_process() {
  static auto& table = *new PluginTable;
  return table;
}

std::optional<Refusal> PluginTable::id_taken(const graft_stamp& stamp) const {
  for (const auto& [identity, entry] : entries_)
    if (entry.library && entry.library->id() == stamp.id)
      return Refusal{"the plugin " + std::string(stamp.id) + " is loaded already from " +
                     quote(entry.library->file().native(), 1000) +
                     ", and a process can have it once; remove one of the two"};
  return std::nullopt;
}

std::variant<const PluginLibrary*, Refusal> PluginTable::start(
    const VettedFile& vetted, const boost::dll::shared_library& library) {
  if (!library.has(GRAFT_PLUGIN_ENTRY_NAME))
    return Refusal{
        "a stamp but no function " GRAFT_PLUGIN_ENTRY_NAME
        ", expected both; write GRAFT_PLUGIN(...) once and build it with graft_add_plugin"};
  const graft_plugin* plugin =
      library.get<EntryFunction>(GRAFT_PLUGIN_ENTRY_NAME)(GRAFT_ABI_MAJOR, GRAFT_ABI_MINOR);
  if (auto refusal = descriptor_problem(plugin, vetted.stamp)) return std::move(*refusal);
  if (auto refusal = claims_problem(*plugin)) return std::move(*refusal);
  if (auto refusal = init_problem(*plugin)) return std::move(*refusal);
  started_.push_back(plugin);
  for (std::uint32_t i = 0; i < plugin->claim_count; ++i)
    if (!plugin->query(kQuantizerInterface, plugin->claims[i].method))
      return Refusal{"it claims method " + quote(plugin->claims[i].method) +
                     " but has no quantizer for it; return one from Plugin::quantizer"};
  return new PluginLibrary(vetted.file, plugin);
}

std::variant<const PluginLibrary*, Refusal> PluginTable::open(const VettedFile& vetted,
                                                              const Context& context) {
  const std::lock_guard lock(mutex_);
  if (shut_down_)
    return Refusal{"graft::shutdown() has run in this process, so no plugin can start any more"};
  if (const auto known = entries_.find(vetted.identity); known != entries_.end()) {
    const auto& entry = known->second;
    if (std::memcmp(&entry.stamp, &vetted.stamp, sizeof(graft_stamp)) != 0)
      return Refusal{"the file was replaced after this process had loaded it; start again"};
    if (entry.library) return entry.library;
    return entry.refusal;
  }
  if (auto refusal = id_taken(vetted.stamp)) return std::move(*refusal);
  if (starting_)
    return Refusal{"another plugin is just starting, and what it logs led here: look for plugins "
                   "when it is done"};

  starting_ = true;
  const auto done = [](bool* starting) { *starting = false; };
  const std::unique_ptr<bool, decltype(done)> guard(&starting_, done);
  const ListeningToPlugins listening(context);
  auto& library = mapped_.emplace_back();  // first, so that nothing can close it once it is mapped
  if (auto refusal = load(vetted.file, library)) {
    mapped_.pop_back();
    return std::move(*refusal);
  }
  auto started = start(vetted, library);
  auto& entry = entries_[vetted.identity];
  entry.stamp = vetted.stamp;
  if (auto* refusal = std::get_if<Refusal>(&started))
    entry.refusal = *refusal;
  else
    entry.library = std::get<const PluginLibrary*>(started);
  return started;
}

const PluginLibrary* PluginTable::find(std::string_view id) {
  const std::lock_guard lock(mutex_);
  for (const auto& [identity, entry] : entries_)
    if (entry.library && entry.library->id() == id) return entry.library;
  return nullptr;
}

void PluginTable::shutdown() {
  const std::lock_guard lock(mutex_);
  shut_down_ = true;
  for (; !started_.empty(); started_.pop_back())
    if (started_.back()->shutdown) started_.back()->shutdown();
}

void shutdown() { PluginTable::of_process().shutdown(); }

}  // namespace graft
