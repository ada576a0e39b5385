#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <algorithm>

#include "cli/conformance/conformance.h"
#include "graft/error.h"
#include "graft/plugin_abi.h"

namespace graft::cli {
namespace {

/// The entry of the plugin, which is loaded already.
const auto& entry_of(const Tried& tried) {
  void* library = ::dlopen(tried.library->file().c_str(), RTLD_NOW | RTLD_NOLOAD);
  void* entry = library ? ::dlsym(library, GRAFT_PLUGIN_ENTRY_NAME) : nullptr;
  if (!entry) broken("its entry cannot be found any more");
  return *reinterpret_cast<decltype(&graft_plugin_entry)>(entry);
}

void other_abi(const Tried& tried) {
  for (const std::uint32_t major : {GRAFT_ABI_MAJOR - 1, GRAFT_ABI_MAJOR + 1})
    if (entry_of(tried)(major, 0))
      broken("it gives a descriptor to a host of ABI " + std::to_string(major));
}

void init_again(const Tried& tried) {
  const graft_plugin* plugin = entry_of(tried)(GRAFT_ABI_MAJOR, GRAFT_ABI_MINOR);
  graft_error error{};
  error.size = sizeof(error);
  for (int time = 0; time < 2; ++time)
    if (plugin->init(nullptr, &error) != GRAFT_OK)
      broken("init(NULL) failed after the host's: " + std::string(error.message));
}

void unknown_interfaces(const Tried& tried) {
  if (tried.library->query("graft.nobody-has-this/1", "x"))
    broken("query gives something for an interface that nobody has");
  if (tried.library->quantizer("a method that nobody claims"))
    broken("query gives a quantizer for a method that it does not claim");
}

void claims(const Tried& tried) {
  const auto claims = tried.library->claims();
  for (std::size_t i = 0; i < claims.size(); ++i)
    for (std::size_t j = 0; j < i; ++j)
      if (std::string_view(claims[i].method) == claims[j].method &&
          std::string_view(claims[i].module_class) == claims[j].module_class &&
          std::string_view(claims[i].device) == claims[j].device)
        broken(std::string("it claims ") + claims[i].module_class + " of " + claims[i].method +
               " twice on " + claims[i].device);
}

void recognition(const Tried& tried) {
  const Value nobody(Value::Object{{"quant_method", "a method that nobody claims"}});
  for (const auto& subject : tried.subjects) {
    if (subject.quantizer->recognises(subject.settings) <= 0)
      broken("it does not recognise " + to_json(subject.settings));
    if (subject.quantizer->recognises(nobody) != 0)
      broken("it recognises settings of another method: " + to_json(nobody));
  }
}

void settings_round_trip(const Tried& tried) {
  for (const auto& subject : tried.subjects) {
    const Value written = subject.quantizer->describe(*subject.config);
    if (!written.is_object()) broken("describe gave a " + std::string(written.type_name()));
    const auto again = subject.quantizer->parse(written);
    if (again->summary() != subject.config->summary() ||
        !(subject.quantizer->describe(*again) == written))
      broken("settings " + to_json(subject.settings) + " are written as " + to_json(written) +
             " and read back as " + again->summary() + ", not " + subject.config->summary());
  }
}

void wrong_settings(const Tried& tried) {
  for (const auto& subject : tried.subjects)
    for (const auto& option : subject.quantizer->options()) {
      Value settings = subject.settings;
      settings.set(option.name, Value(Value::Object{{"of", "the wrong type"}}));
      try {
        subject.quantizer->parse(settings);
      } catch (const Error& error) {
        if (error.kind() == ErrorKind::model || error.kind() == ErrorKind::usage) continue;
        throw;
      }
      broken("an object as the option " + quote(option.name) + " is accepted");
    }
}

void operators(const Tried& tried) {
  auto& dispatcher = c10::Dispatcher::singleton();
  std::set<std::string> listed;
  for (const auto& kernel : tried.library->kernels()) {
    listed.insert(kernel.op);
    const auto found = dispatcher.findSchema({kernel.op, ""});
    if (!found) broken(std::string("the kernel ") + kernel.op + " is listed but not registered");
    const auto key =
        std::string_view(kernel.device) == "cuda" ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
    if (!found->hasKernelForDispatchKey(key))
      broken(std::string("the kernel ") + kernel.op + " is not registered for " + kernel.device);
  }
  for (const auto& name : operators_now())
    if (!tried.operators_before.contains(name) && !listed.contains(name))
      broken("the operator " + name + " is registered but not listed in Plugin::kernels");
}

}  // namespace

std::vector<Check> border_checks() {
  return {
      {"it is loaded: its stamp, its entry and its init are in order", [](const Tried&) {}},
      {"a host of another ABI gets no descriptor", other_abi},
      {"init may run again, without a host too", init_again},
      {"unknown interfaces and methods get nothing", unknown_interfaces},
      {"no claim is made twice", claims},
      {"settings of its methods are recognised, others are not", recognition},
      {"settings that are written and read again are the same", settings_round_trip},
      {"options of the wrong type are refused with an Error", wrong_settings},
      {"listed operators are registered, registered ones are listed", operators},
  };
}

}  // namespace graft::cli
