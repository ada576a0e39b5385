#include "text/metaspace.h"

#include "text/component.h"
#include "text/utf8.h"

namespace graft {

Metaspace::Metaspace(const Value& component) {
  allow_fields(component,
               {"replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"});
  append_utf8(replacement, get_character(component, "replacement"));
  split = component.get_bool("split", true);
  const std::string scheme = component.get_string("prepend_scheme", "always");
  if (scheme == "always")
    prepend = Prepend::always;
  else if (scheme == "first")
    prepend = Prepend::first;
  else if (scheme == "never")
    prepend = Prepend::never;
  else
    refuse_field("prepend_scheme", scheme, "always, first or never");
  if (!component.get_bool("add_prefix_space", true)) {
    if (component.find("prepend_scheme") && prepend != Prepend::never)
      throw Error(ErrorKind::model, "'add_prefix_space' and 'prepend_scheme' disagree");
    prepend = Prepend::never;
  }
}

}  // namespace graft
