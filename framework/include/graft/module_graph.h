#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "graft/nn/block.h"

namespace graft {

// Walking and changing the module graph, with the names that Transformers uses.

struct NamedModule {
  std::string path;  ///< "" for the root
  std::shared_ptr<torch::nn::Module> module;
};

/// The class name that registries and plans use: Block::class_name(), else LibTorch's name().
GRAFT_API std::string class_name_of(const torch::nn::Module& module);

/// Every module below and including `root`, parents before children, in registration order. A
/// module that is reachable by two paths is listed at both. `root` must be held by a shared_ptr.
GRAFT_API std::vector<NamedModule> named_modules(const std::shared_ptr<torch::nn::Module>& root);

struct ParentAndName {
  std::shared_ptr<torch::nn::Module> parent;
  std::string name;
};

/// The parent of the module at `path` and its name there. Throws Error(usage) with the nearest
/// paths when there is none, and for "" because a root has no parent.
GRAFT_API ParentAndName get_module_from_name(const std::shared_ptr<torch::nn::Module>& root,
                                             const std::string& path);

/// Modules of the class, each counted once however many paths lead to it.
GRAFT_API std::size_t count(const std::shared_ptr<torch::nn::Module>& root,
                            const std::string& class_name);

/// Puts `next` at `path`, into the slot and the registered list alike; returns what was there. The
/// parent is a Block with such a slot, or LibTorch's own Sequential (`next` is a nn::Unary then),
/// ModuleList or ModuleDict. Throws Error(usage), leaving everything as it was, for any other
/// parent (the message names its class and the line to change) and when the interface does not fit.
GRAFT_API std::shared_ptr<torch::nn::Module> replace_at(
    const std::shared_ptr<torch::nn::Module>& root, const std::string& path,
    std::shared_ptr<torch::nn::Module> next);

/// Puts an nn::Linear that shares weight and bias into the place of every torch::nn::Linear below
/// `root`, so that it can be planned and replaced; gives their number. Throws Error(usage) as
/// replace_at does, with nothing changed, for one whose parent does not let go of it.
GRAFT_API std::size_t adopt_linears(const std::shared_ptr<torch::nn::Module>& root);

}  // namespace graft
