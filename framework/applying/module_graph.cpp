#include "graft/module_graph.h"

#include <set>

#include "applying/containers.h"
#include "graft/error.h"

namespace graft {
namespace {

void walk(const std::string& path, const std::shared_ptr<torch::nn::Module>& module,
          std::vector<NamedModule>& out) {
  out.push_back({path, module});
  for (const auto& child : module->named_children())
    if (child.value())
      walk(path.empty() ? child.key() : path + "." + child.key(), child.value(), out);
}

std::shared_ptr<torch::nn::Module> child_of(const torch::nn::Module& parent,
                                            const std::string& name) {
  // A slot is found without copying the list of children, which is long for experts.
  if (const auto* block = dynamic_cast<const nn::Block*>(&parent))
    if (auto child = block->child(name)) return child;
  const auto children = parent.named_children();
  const auto* child = children.find(name);
  return child ? *child : nullptr;
}

}  // namespace

std::string class_name_of(const torch::nn::Module& module) {
  if (const auto* block = dynamic_cast<const nn::Block*>(&module)) return block->class_name();
  return module.name();
}

std::vector<NamedModule> named_modules(const std::shared_ptr<torch::nn::Module>& root) {
  std::vector<NamedModule> out;
  walk("", root, out);
  return out;
}

ParentAndName get_module_from_name(const std::shared_ptr<torch::nn::Module>& root,
                                   const std::string& path) {
  if (path.empty()) throw Error(ErrorKind::usage, "the root module has no parent").at("module ''");
  auto parent = root;
  std::size_t begin = 0;
  for (std::size_t dot; (dot = path.find('.', begin)) != std::string::npos && parent;
       begin = dot + 1)
    parent = child_of(*parent, path.substr(begin, dot - begin));
  const std::string name = path.substr(begin);
  if (!parent || !child_of(*parent, name)) {
    std::vector<std::string> paths;
    for (const auto& entry : named_modules(root)) paths.push_back(entry.path);
    Error error(ErrorKind::usage, "the model has no module " + quote(path));
    if (const auto near = nearest_names(path, paths); !near.empty())
      error.hint("did you mean " + near + "?");
    throw error;
  }
  return {parent, name};
}

std::size_t count(const std::shared_ptr<torch::nn::Module>& root, const std::string& class_name) {
  std::set<const torch::nn::Module*> seen;
  for (const auto& entry : named_modules(root))
    if (class_name_of(*entry.module) == class_name) seen.insert(entry.module.get());
  return seen.size();
}

std::shared_ptr<torch::nn::Module> replace_at(const std::shared_ptr<torch::nn::Module>& root,
                                              const std::string& path,
                                              std::shared_ptr<torch::nn::Module> next) {
  if (!next) throw Error(ErrorKind::usage, "no replacement was given").at(path);
  const auto [parent, name] = get_module_from_name(root, path);
  auto former = child_of(*parent, name);
  auto* block = dynamic_cast<nn::Block*>(parent.get());
  try {
    if (block && block->has_slot(name))
      block->replace_child(name, std::move(next));
    else if (!replace_in_container(*parent, name, next))
      throw Error(ErrorKind::usage,
                  "the child " + quote(name) + " of a " + class_name_of(*parent) +
                      " cannot be replaced: its forward keeps a pointer of its own")
          .hint(
              "derive the class from graft::nn::Block and declare the child as "
              "graft::nn::Slot<graft::nn::Unary> " +
              name + "{*this, \"" + name + "\", ...};");
  } catch (Error& error) {
    throw error.at(path);
  }
  return former;
}

}  // namespace graft
