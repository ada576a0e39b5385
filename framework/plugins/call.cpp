#include "plugins/call.h"

#include <c10/util/Exception.h>

#include <new>
#include <string>

#include "graft/error.h"
#include "plugins/library.h"

namespace graft {
namespace {

std::string name_of(std::string_view plugin_id) {
  const auto* library = PluginTable::of_process().find(plugin_id);
  return "plugin " + std::string(plugin_id) +
         (library ? " " + std::string(library->version()) : std::string());
}

Error out_of_memory(std::string_view plugin_id, std::string_view doing) {
  Error error(ErrorKind::resource, "out of memory");
  error.at(doing).at(name_of(plugin_id));
  return error;
}

Error defect(std::string_view plugin_id, std::string_view doing, std::string_view what) {
  what = what.substr(0, what.find('\n'));  // a backtrace may follow
  Error error(ErrorKind::plugin, "it failed with " + quote(what, 1000));
  error.at(doing).at(name_of(plugin_id));
  if (const auto* library = PluginTable::of_process().find(plugin_id))
    error.at(quote(library->file().native(), 1000));
  error.hint("this is a defect of the plugin: report it to its author, or run without it");
  return error;
}

}  // namespace

void rethrow_from_plugin(std::string_view plugin_id, std::string_view doing) {
  try {
    throw;
  } catch (Error& error) {
    if (error.kind() == ErrorKind::internal) throw defect(plugin_id, doing, error.what());
    error.at(doing).at(name_of(plugin_id));
    throw;
  } catch (const std::bad_alloc&) {
    throw out_of_memory(plugin_id, doing);
  } catch (const c10::OutOfMemoryError&) {
    throw out_of_memory(plugin_id, doing);
  } catch (const c10::Error& error) {
    throw defect(plugin_id, doing, error.what_without_backtrace());
  } catch (const std::exception& error) {
    throw defect(plugin_id, doing, error.what());
  } catch (...) {
    throw defect(plugin_id, doing, "an exception of unknown type");
  }
}

}  // namespace graft
