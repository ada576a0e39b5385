#include "plugins/call.h"

#include <c10/util/Exception.h>

#include <new>
#include <string>

#include "graft/error.h"

namespace graft {
namespace {

std::string name_of(const PluginLibrary& plugin) {
  return "plugin " + std::string(plugin.id()) + " " + std::string(plugin.version());
}

Error out_of_memory(const PluginLibrary& plugin, std::string_view doing) {
  Error error(ErrorKind::resource, "out of memory");
  error.at(doing).at(name_of(plugin));
  return error;
}

Error defect(const PluginLibrary& plugin, std::string_view doing, std::string_view what) {
  what = what.substr(0, what.find('\n'));  // a backtrace may follow
  Error error(ErrorKind::plugin, "it failed with " + quote(what, 1000));
  error.at(doing).at(name_of(plugin)).at(quote(plugin.file().native(), 1000));
  error.hint("this is a defect of the plugin: report it to its author, or run without it");
  return error;
}

}  // namespace

void rethrow_from_plugin(const PluginLibrary& plugin, std::string_view doing) {
  try {
    throw;
  } catch (Error& error) {
    if (error.kind() == ErrorKind::internal) throw defect(plugin, doing, error.what());
    error.at(name_of(plugin));
    throw;
  } catch (const std::bad_alloc&) {
    throw out_of_memory(plugin, doing);
  } catch (const c10::OutOfMemoryError&) {
    throw out_of_memory(plugin, doing);
  } catch (const c10::Error& error) {
    throw defect(plugin, doing, error.what_without_backtrace());
  } catch (const std::exception& error) {
    throw defect(plugin, doing, error.what());
  } catch (...) {
    throw defect(plugin, doing, "an exception of unknown type");
  }
}

}  // namespace graft
