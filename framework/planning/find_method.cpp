#include <set>

#include "graft/error.h"
#include "planning/planner.h"
#include "plugins/call.h"

namespace graft {

Method find_method(const Value& settings, const std::vector<ClaimRow>& claims,
                   const QuantizerLookup& lookup) {
  std::set<std::pair<std::string, std::string>> offers;  // method, plugin
  for (const auto& claim : claims) offers.emplace(claim.method, claim.plugin_id);
  Method best;
  int best_score = 0;
  std::string rival;
  std::vector<std::string> methods;
  for (const auto& [method, plugin] : offers) {
    if (methods.empty() || methods.back() != method) methods.push_back(method);
    const Quantizer* quantizer = lookup(plugin, method);
    const int score = quantizer ? call_plugin(plugin, "quantization_config",
                                              [&] { return quantizer->recognises(settings); })
                                : 0;
    if (score > best_score) {
      best_score = score;
      best = {method, plugin, quantizer, settings, nullptr};
      rival.clear();
    } else if (score > 0 && score == best_score && method != best.name) {
      rival = method;
    }
  }
  if (best_score == 0) {
    std::string installed;
    for (const auto& method : methods) installed += (installed.empty() ? "" : ", ") + method;
    const std::string named = settings.get_string("quant_method", "");
    Error error(ErrorKind::plugin,
                named.empty() ? "no plugin recognises the quantization settings"
                              : "no plugin claims the quantization method " + quote(named));
    error.expected(installed.empty() ? "a plugin, but none is loaded" : "one of " + installed);
    if (const auto near = nearest_names(named, methods); !near.empty())
      error.hint("did you mean " + near + "?");
    else
      error.hint(
          "install the plugin into the plugin directory (graft plugins lists where is searched)");
    throw error;
  }
  if (!rival.empty())
    throw Error(ErrorKind::plugin,
                "the quantization settings could be of " + best.name + " or of " + rival)
        .hint("add \"quant_method\" to the settings");
  best.config = require_config(call_plugin(best.plugin_id, "quantization_config",
                                           [&] { return best.quantizer->parse(settings); }),
                               best.plugin_id);
  return best;
}

QuantConfigPtr require_config(QuantConfigPtr config, const std::string& plugin_id) {
  if (!config)
    throw Error(ErrorKind::plugin, "the plugin " + plugin_id + " made no settings (nullptr)")
        .hint("report it to its author, or run without it");
  return config;
}

}  // namespace graft
