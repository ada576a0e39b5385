#pragma once

#include <torch/nn/module.h>

#include <memory>
#include <string>

namespace graft {

/// Whether `parent` is a Sequential, ModuleList or ModuleDict of LibTorch, which keep their
/// children twice, as registered ones and as those they use.
bool is_container(const torch::nn::Module& parent);

/// Puts `next` in the place of the child `name` of such a container; false for another class.
/// Throws Error(usage), leaving everything as it was, when a Sequential cannot call it.
bool replace_in_container(torch::nn::Module& parent, const std::string& name,
                          const std::shared_ptr<torch::nn::Module>& next);

}  // namespace graft
