#include <algorithm>
#include <cstdlib>
#include <map>

#include "reporting/plot.h"
#include "reporting/report.h"

namespace graft {
namespace {

constexpr const char* kHead = R"(<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark; --page: #f7f7f5; --card: #ffffff; --ink: #1c1c1a;
  --soft: #5f5f5a; --rule: #e1e0db; --warn: #a33a00;
  --s0: #2a78d6; --s1: #1a9a70; --s2: #c98500; --s3: #7a5bd0; --s4: #d9480f; --s5: #c2408f;
  --s6: #3d7a00; --s7: #c92a2a; --s8: #80807a; }
@media (prefers-color-scheme: dark) {
  :root { --page: #141413; --card: #1f1f1d; --ink: #ecebe6; --soft: #a5a49c; --rule: #37362f;
    --warn: #ffb27d; --s0: #5aa2f0; --s1: #35bd8f; --s2: #e0a52e; --s3: #a68ff0; --s4: #f0783c;
    --s5: #e878b8; --s6: #86bf45; --s7: #f07070; --s8: #a5a49c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0 .75rem; }
.soft, .axis { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.75rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0; }
.tile, .card { background: var(--card); border: 1px solid var(--rule); border-radius: .5rem; }
.tile { padding: .75rem; font-size: .85rem; color: var(--soft); overflow-wrap: anywhere; }
.tile b { display: block; font-size: 1.35rem; font-weight: 600; line-height: 1.3;
  color: var(--ink); }
.card { padding: .75rem; overflow-x: auto; }
.warn { border-left: 4px solid var(--warn); padding-left: .75rem; margin: .5rem 0; }
svg { display: block; width: 100%; height: auto; }
.narrow { display: none; }
.axis { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--rule); }
polyline { fill: none; stroke: currentColor; stroke-width: 1.5; opacity: .55; }
circle { fill: currentColor; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem; margin: 0 0 .5rem; }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%;
  background: currentColor; margin-right: .35rem; }
.legend span span { color: var(--ink); }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); }
.s3 { color: var(--s3); } .s4 { color: var(--s4); } .s5 { color: var(--s5); }
.s6 { color: var(--s6); } .s7 { color: var(--s7); } .s8 { color: var(--s8); }
table { width: 100%; border-collapse: collapse; font-size: .85rem; }
th { text-align: left; font-weight: 600; color: var(--soft); vertical-align: bottom; }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--rule); }
tr:last-child > * { border-bottom: 0; }
td { vertical-align: top; overflow-wrap: anywhere; }
td:first-child { min-width: 6rem; overflow-wrap: break-word; }
.facts th { width: 38%; vertical-align: top; font-weight: 400; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th.n, .words { white-space: normal; }
@media (max-width: 40rem) { .wide { display: none; } .narrow { display: block; }
  th, td { padding-right: .4rem; } }
</style>
)";

/// A value as the JSON has it.
std::string shown(const Value* value) {
  if (!value) return "none";
  return escaped(value->is_string() ? value->as_string() : to_json(*value));
}

std::string shown(const Value& object, const char* key) { return shown(object.find(key)); }

/// A path of modules, which may be broken behind its dots.
std::string path_shown(const std::string& path) {
  std::string out;
  for (const char c : escaped(path)) out.append(1, c).append(c == '.' ? "<wbr>" : "");
  return out;
}

std::string tile(const std::string& name, const std::string& number, const std::string& more) {
  return "<div class=\"tile\">" + name + "<b>" + number + "</b>" + more + "</div>\n";
}

std::string tiles(const Value& report) {
  std::string out = "<div class=\"tiles\">\n";
  if (const Value* sizes = report.find("sizes")) {
    out += tile("Size", shown(*sizes, "megabytes_after") + " MB",
                "before: " + shown(*sizes, "megabytes_before") + " MB");
    out += tile("Bits per weight", shown(*sizes, "bits_per_weight"),
                shown(*sizes, "quantized_modules") + " modules quantized, " +
                    shown(*sizes, "kept_modules") + " kept");
  }
  if (const Value* found = report.find("comparison")) {
    out += tile("KL divergence", shown(*found, "kl_mean"),
                "nats a token; 99th percentile " + shown(*found, "kl_p99") + ", largest " +
                    shown(*found, "kl_max"));
    out += tile("Same next token", shown(*found, "top1_agreement"), "share of all tokens");
    out += tile("Perplexity", shown(*found, "perplexity"),
                "before: " + shown(*found, "perplexity_reference"));
  } else {
    out += tile("KL divergence", "not measured", "--eval FILE measures it");
  }
  if (report.find("calibration"))
    out += tile("Fallbacks", shown(report, "fallback_modules"),
                "modules without usable statistics");
  return out + "</div>\n";
}

std::string warnings(const Value& report) {
  std::string out;
  if (const Value* fallbacks = report.find("fallbacks"))
    for (const auto& row : fallbacks->as_array())
      out += "<p class=\"warn\">" + shown(row, "modules") + " modules: " + shown(row, "reason") +
             "</p>\n";
  if (const Value* notes = report.find("notes"))
    for (const auto& note : notes->as_array())
      out += "<p class=\"warn\">" + shown(&note) + "</p>\n";
  return out;
}

/// The plot for wide and for narrow screens: text in it keeps its size so.
std::string plots(const std::vector<PlotSeries>& series, const std::string& x_label) {
  std::string out;
  for (const int width : {880, 330}) {
    const auto plot = log_plot(series, width, x_label);
    if (plot.empty()) return "";
    out += std::string("<div class=\"") + (width > 500 ? "wide" : "narrow") + "\">\n" + plot +
           "</div>\n";
  }
  return out;
}

std::string card(const std::string& title, const std::string& about, const std::string& content) {
  return "<h2>" + title + "</h2>\n<p class=\"soft\">" + about + "</p>\n<div class=\"card\">\n" +
         content + "</div>\n";
}

/// The first number in a path of modules, which is that of the layer; -1: there is none.
int layer_of(const std::string& path) {
  for (std::size_t at = 0; at < path.size(); at = path.find('.', at) + 1) {
    char* end = nullptr;
    const long number = std::strtol(path.c_str() + at, &end, 10);
    if (end != path.c_str() + at && (*end == '.' || !*end)) return static_cast<int>(number);
    if (path.find('.', at) == std::string::npos) break;
  }
  return -1;
}

/// A dot for each layer and kind of module, of several (experts) the worst.
std::string error_plot(const Value& groups, bool polished) {
  std::vector<PlotSeries> series;
  std::map<std::string, std::map<int, std::pair<const Value*, std::string>>> worst;
  for (const auto& group : groups.as_array()) {
    const auto& modules = group.at("modules").as_array();
    const auto& errors = group.at("module_errors").as_array();
    for (std::size_t i = 0; i < std::min(modules.size(), errors.size()); ++i) {
      const std::string& path = modules[i].as_string();
      const int layer = layer_of(path);
      if (layer < 0 || !errors[i].is_number()) continue;
      const std::string kind = path.substr(path.rfind('.') + 1);
      if (!worst.contains(kind)) series.push_back({kind, {}});
      auto& found = worst[kind][layer];
      if (!found.first || found.first->as_double() < errors[i].as_double())
        found = {&errors[i], path};
    }
  }
  std::string legend = "<div class=\"legend\">";
  for (std::size_t i = 0; i < series.size(); ++i) {
    for (const auto& [layer, found] : worst[series[i].name])
      series[i].points.push_back({layer, found.first->as_double(),
                                  found.second + ": " + to_json(*found.first)});
    legend += "<span class=\"s" + std::to_string(std::min<std::size_t>(i, 8)) + "\"><i></i><span>" +
              escaped(series[i].name) + "</span></span>";
  }
  const std::string drawn = plots(series, "layer");
  if (drawn.empty()) return "";
  return card("Error of each module",
              std::string("Squared error of its output on the calibration text, relative to the "
                          "output, on a logarithmic scale; where a layer has several of a kind, "
                          "the largest") +
                  (polished ? "; before its layer was polished" : ""),
              legend + "</div>\n" + drawn);
}

std::string layer_plot(const Value& comparison) {
  PlotSeries series{"hidden states", {}};
  int layer = 0;
  for (const auto& error : comparison.at("layers").as_array()) {
    if (error.is_number()) series.points.push_back({layer, error.as_double(), to_json(error)});
    ++layer;
  }
  const std::string drawn = plots({series}, "layer");
  if (drawn.empty()) return "";
  return card("Error behind each layer",
              "Squared difference of the hidden states on the text that was measured on, relative "
              "to those of the model before, on a logarithmic scale",
              drawn);
}

std::string experts_table(const Value& experts) {
  if (experts.as_array().empty()) return "";
  std::string rows =
      "<table>\n<tr><th>Layer</th><th class=\"n\">Experts</th><th class=\"n\">No tokens</th>"
      "<th class=\"n\">Fewest</th><th class=\"n\">Most</th></tr>\n";
  for (const auto& row : experts.as_array()) {
    rows += "<tr><td>" + path_shown(row.at("path").as_string()) + "</td>";
    for (const char* key : {"experts", "without_tokens", "fewest_tokens", "most_tokens"})
      rows += "<td class=\"n\">" + shown(row, key) + "</td>";
    rows += "</tr>\n";
  }
  return card("Tokens of the experts",
              "How many tokens of the calibration text each expert was quantized by; the JSON file "
              "has them one by one",
              rows + "</table>\n");
}

std::string polished_table(const Value& layers) {
  if (layers.as_array().empty()) return "";
  std::string rows =
      "<table>\n<tr><th class=\"n\">Layer</th><th class=\"n\">Error before</th>"
      "<th class=\"n\">Error after</th><th class=\"n\">Codes changed</th></tr>\n";
  for (const auto& row : layers.as_array()) {
    rows += "<tr>";
    for (const char* key : {"layer", "error_before", "error_after"})
      rows += "<td class=\"n\">" + shown(row, key) + "</td>";
    rows += row.find("left") ? "<td class=\"n words\">none: " + shown(row, "left")
                             : "<td class=\"n\">" + shown(row, "changed");
    rows += "</td></tr>\n";
  }
  return card("Polished layers",
              "Squared error of the layer's output, relative to that of the model before, on "
              "samples that polishing did not see, and the share of codes that it changed",
              rows + "</table>\n");
}

std::string groups_table(const Value& groups) {
  if (groups.as_array().empty()) return "";
  bool fallbacks = false;
  for (const auto& group : groups.as_array()) fallbacks |= group.find("fallback") != nullptr;
  std::string rows = "<table>\n<tr><th>Modules</th><th class=\"n\">Tokens</th><th class=\"n\">"
                     "Relative error</th>";
  rows += fallbacks ? "<th>Fallback</th></tr>\n" : "</tr>\n";
  for (const auto& group : groups.as_array()) {
    std::string names;
    for (const auto& module : group.at("modules").as_array()) {
      const std::string& path = module.as_string();
      names += names.empty() ? path_shown(path) : ", " + escaped(path.substr(path.rfind('.') + 1));
    }
    rows += "<tr><td>" + names + "</td><td class=\"n\">" + shown(group, "tokens") +
            "</td><td class=\"n\">" + shown(group, "relative_error") + "</td>";
    if (fallbacks)
      rows += "<td>" + (group.find("fallback") ? shown(group, "fallback") : "") + "</td>";
    rows += "</tr>\n";
  }
  return card("Groups of modules", "Modules with one input, in the order they were quantized in",
              rows + "</table>\n");
}

/// Names and values; those inside of others behind the name of what holds them.
std::string facts(const Value& object, const std::string& start = "") {
  std::string out;
  for (const auto& [key, value] : object.as_object()) {
    if (value.is_object())
      out += facts(value, start + key + " ");
    else
      out += "<tr><th>" + escaped(start + key) + "</th><td>" +
             (value.is_null() ? "default" : shown(&value)) + "</td></tr>\n";
  }
  return out;
}

}  // namespace

std::string to_html(const Value& report) {
  const Value* method = report.find("method");
  const Value* found = report.find("comparison");
  const std::string name = shown(report, "model");
  std::string about =
      method ? shown(method) + ", " + shown(report, "summary")
             : "compared with " + shown(report, "reference");
  if (const Value* base = report.find("base_model")) about += "; made from " + shown(base);
  std::string out = kHead;
  out += "<title>" + name + " - graft</title>\n</head>\n<body>\n<main>\n<h1>" + name +
         "</h1>\n<p class=\"soft\">" + about + "</p>\n" + tiles(report) + warnings(report);
  const Value* polished = report.find("polished");
  if (const Value* groups = report.find("groups"))
    out += error_plot(*groups, polished && !polished->as_array().empty());
  if (found) out += layer_plot(*found);
  if (polished) out += polished_table(*polished);
  if (const Value* experts = report.find("experts")) out += experts_table(*experts);
  std::string how;
  if (const Value* call = report.find("call"))
    how += card("Settings", "As the call had them",
                "<table class=\"facts\">\n" + facts(*call) + "</table>\n");
  if (const Value* text = report.find("calibration"))
    how += card("Calibration text", "What the modules were quantized by",
                "<table class=\"facts\">\n" + facts(*text) + "</table>\n");
  if (found) {
    Value text;
    for (const char* key : {"file", "windows", "context", "tokens", "not_finite", "crc32"})
      if (const Value* value = found->find(key)) text.set(key, *value);
    how += card("Measured on", "Windows of text, the first token of each not scored",
                "<table class=\"facts\">\n" + facts(text) + "</table>\n");
  }
  out += how;
  if (const Value* groups = report.find("groups")) out += groups_table(*groups);
  return out + "<p class=\"soft\">graft " + shown(report, "graft") +
         "</p>\n</main>\n</body>\n</html>\n";
}

std::string model_card(const Value& report) {
  const Value *base = report.find("base_model"), *found = report.find("comparison"),
              *text = report.find("calibration");
  const Value& sizes = report.at("sizes");
  const auto plain = [](const Value& object, const char* key) {
    const Value* value = object.find(key);
    std::string cell = !value               ? "none"
                       : value->is_string() ? value->as_string()
                                            : to_json(*value);
    for (char& c : cell)  // what would end a cell of a table
      if (c == '|' || static_cast<unsigned char>(c) < 0x20) c = ' ';
    return cell;
  };
  std::string out = "---\n";
  if (base) out += "base_model: " + to_json(*base) + "\nbase_model_relation: quantized\n";
  out += "library_name: transformers\ntags:\n- graft\n- " + to_json(report.at("method")) +
         "\n---\n\n";
  out += "# " + plain(report, "model") + ", quantized\n\n";
  out += "Made with graft " + plain(report, "graft") + " by the method " +
         plain(report, "method") + " (" + plain(report, "summary") + ") from " +
         plain(report, base ? "base_model" : "model") +
         ", whose license holds for this model too.\n\n";
  const auto row = [&](const std::string& name, const std::string& value) {
    out += "| " + name + " | " + value + " |\n";
  };
  row("", "");
  row("---", "---");
  row("size", plain(sizes, "megabytes_before") + " MB before, " +
                  plain(sizes, "megabytes_after") + " MB after");
  row("bits per weight where quantized", plain(sizes, "bits_per_weight"));
  row("modules quantized", plain(sizes, "quantized_modules"));
  if (text) {
    row("calibration text", plain(*text, "file") + ": " + plain(*text, "samples") + " samples of " +
                                plain(*text, "seq_len") + " tokens");
    row("modules without usable statistics", plain(report, "fallback_modules"));
  }
  if (found) {
    row("measured on", plain(*found, "file") + ": " + plain(*found, "tokens") + " tokens");
    row("KL divergence, nats a token", plain(*found, "kl_mean"));
    row("same next token, share of tokens", plain(*found, "top1_agreement"));
    row("perplexity", plain(*found, "perplexity_reference") + " before, " +
                          plain(*found, "perplexity") + " after");
  }
  out += "\nSettings:\n\n```json\n" + to_json(report.at("call"), 2) + "\n```\n\n";
  return out + "`graft-report.html` shows the error of each layer, `graft-report.json` has all "
               "numbers.\n";
}

}  // namespace graft
