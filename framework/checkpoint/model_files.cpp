#include "checkpoint/model_files.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

#include "checkpoint/folder.h"
#include "graft/error.h"
#include "graft/value.h"

namespace graft {

namespace fs = std::filesystem;

namespace {

bool is_below(const fs::path& path, const fs::path& folder) {
  const auto apart = std::mismatch(folder.begin(), folder.end(), path.begin(), path.end());
  return apart.first == folder.end();
}

/// Whether a link leads out of `model` and its cache: snapshots/COMMIT/NAME -> ../../blobs/HASH.
bool leads_astray(const fs::path& link, const fs::path& model) {
  std::error_code error;
  const fs::path target = fs::canonical(link, error);
  const fs::path folder = fs::canonical(model, error);
  if (error) return true;
  const bool cached = folder.parent_path().filename() == "snapshots";
  return !is_below(target, folder) &&
         !(cached && is_below(target, folder.parent_path().parent_path() / "blobs"));
}

bool is_plain_folder(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(fs::symlink_status(path, error))) return false;
  const auto names = names_in(path, error);
  if (error) return false;
  return std::none_of(names.begin(), names.end(), [&](const std::string& name) {
    return fs::is_directory(path / name, error) ||
           (fs::is_symlink(path / name, error) && leads_astray(path / name, path.parent_path()));
  });
}

}  // namespace

std::set<fs::path> folders_of_model(const fs::path& model) {
  std::set<fs::path> out;
  const auto add = [&](const std::string& name) {
    if (!name.empty() && fs::path(name).filename() == name && is_plain_folder(model / name))
      out.insert(model / name);
  };
  add("additional_chat_templates");
  std::ifstream in(model / "modules.json", std::ios::binary);
  std::ostringstream text;
  if (!(in && text << in.rdbuf())) return out;
  try {
    const Value modules = parse_json(text.str(), {.bytes = 1u << 20});
    if (modules.is_array())
      for (const auto& module : modules.as_array()) add(module.get_string("path", ""));
  } catch (const Error&) {
    // Who reads the modules says what is wrong with the file; it names no folders.
  }
  return out;
}

bool is_companion(const fs::path& path, const std::set<fs::path>& folders) {
  static const std::set<std::string> kWeights{".safetensors", ".bin", ".pt",   ".pth",     ".ckpt",
                                              ".h5",          ".ot",  ".onnx", ".msgpack", ".gguf"};
  static const std::set<std::string> kEveryModels{
      "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
      "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
      "chat_template.jinja"};
  std::error_code error;  // what cannot be examined is none
  if (fs::is_directory(path, error)) return folders.contains(path);
  const std::string name = path.filename().string();
  if (!fs::is_regular_file(path, error) || name.starts_with(".")) return false;
  if (fs::is_symlink(path, error) && !kEveryModels.contains(name) &&
      leads_astray(path, path.parent_path()))
    return false;
  std::string end = path.extension().string();
  std::transform(end.begin(), end.end(), end.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return !kWeights.contains(end) && !name.ends_with(".index.json") && name != "config.json" &&
         name != "adapter_config.json" && name != "README.md" && !name.starts_with("graft-");
}

}  // namespace graft
