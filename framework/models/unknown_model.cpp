#include "models/unknown_model.h"

#include <ATen/ops/empty.h>

#include <list>
#include <map>

#include "graft/error.h"
#include "graft/nn/layers.h"
#include "graft/tensors.h"

namespace graft {
namespace {

using nn::Block;
using nn::Slot;

/// Tensors and modules below one name.
struct Node : Block {
  explicit Node(std::string class_name) : Block(std::move(class_name)) {}

  void add_tensor(const std::string& name, const at::Tensor& tensor) {
    own(name, tensors.emplace_back(), tensor);
  }
  void add_child(const std::string& name, std::shared_ptr<Block> child) {
    slots.push_back(std::make_unique<Slot<Block>>(*this, name, std::move(child)));
  }

  std::list<at::Tensor> tensors;  // members keep their addresses
  std::vector<std::unique_ptr<Slot<Block>>> slots;
};

struct Names {
  std::map<std::string, const TensorInfo*> tensors;
  std::map<std::string, Names> children;
};

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

/// A matrix that a Linear holds, as far as its name and shape tell: embeddings, routers and what
/// has a row for each word of the vocabulary are none.
bool is_linear(const std::string& name, const Names& names, std::int64_t vocabulary) {
  const auto weight = names.tensors.find("weight");
  if (weight == names.tensors.end() || !names.children.empty()) return false;
  const TensorInfo& info = *weight->second;
  if (info.shape.size() != 2 || !is_float(info.dtype)) return false;
  for (const auto& [other, tensor] : names.tensors)
    if (other != "weight" && !(other == "bias" && tensor->shape == std::vector{info.shape[0]}))
      return false;
  if (info.shape[0] < 2 || info.shape[1] < 2 || info.shape[0] == vocabulary) return false;
  for (const char* part : {"embed", "wte", "wpe", "norm", "router", "lm_head", "head"})
    if (contains(name, part)) return false;
  return name != "gate" && name != "shared";
}

std::shared_ptr<Block> node_of(const std::string& name, const Names& names,
                               std::int64_t vocabulary) {
  const auto meta = [](const TensorInfo& info) {
    return at::empty(info.shape, at::TensorOptions(at::kMeta).dtype(scalar_type(info.dtype)));
  };
  if (is_linear(name, names, vocabulary)) {
    const TensorInfo& weight = *names.tensors.at("weight");
    return std::make_shared<nn::Linear>(
        weight.shape[1], weight.shape[0], names.tensors.contains("bias"),
        at::TensorOptions(at::kMeta).dtype(scalar_type(weight.dtype)));
  }
  auto node = std::make_shared<Node>(name.empty() ? "Unknown" : name);
  for (const auto& [tensor, info] : names.tensors) node->add_tensor(tensor, meta(*info));
  for (const auto& [child, below] : names.children)
    node->add_child(child, node_of(child, below, vocabulary));
  return node;
}

struct UnknownModel : Model {
  UnknownModel(const Value& config, const Names& names, std::int64_t vocabulary)
      : Model("UnknownModel", config) {
    for (const auto& [child, below] : names.children)
      slots.push_back(
          std::make_unique<Slot<Block>>(*this, child, node_of(child, below, vocabulary)));
    for (const auto& [tensor, info] : names.tensors)
      own(tensor, tensors.emplace_back(),
          at::empty(info->shape, at::TensorOptions(at::kMeta).dtype(scalar_type(info->dtype))));
  }

  Output output() const override { return Output::logits; }
  at::Tensor forward(const Batch&) override {
    std::string known;
    for (const auto& type : known_model_types()) known += (known.empty() ? "" : ", ") + type;
    throw Error(ErrorKind::model, "a model of an architecture that graft does not have cannot run")
        .at("config.json")
        .expected("one of " + known)
        .found(quote(config().get_string("model_type", "")));
  }
  std::size_t cache_layers() const override { return 0; }
  std::vector<InputGroup> input_groups() const override { return {}; }
  std::vector<UnusedTensors> unused_tensors() const override { return {}; }

  std::list<at::Tensor> tensors;
  std::vector<std::unique_ptr<Slot<Block>>> slots;
};

}  // namespace

std::shared_ptr<Model> build_unknown_model(const Checkpoint& checkpoint) {
  const Value& config = checkpoint.config();
  const Value* text = config.find("text_config");
  const std::int64_t vocabulary = (text ? *text : config).get_int("vocab_size", -1);
  constexpr std::size_t kDeepest = 32;
  Names root;
  for (const auto& info : checkpoint.tensors()) {
    Names* at = &root;
    std::size_t begin = 0, depth = 0;
    for (std::size_t dot; (dot = info.name.find('.', begin)) != std::string::npos;
         begin = dot + 1) {
      if (dot == begin || ++depth > kDeepest)
        throw Error(ErrorKind::model, "the name of a tensor is no path of modules")
            .at("tensor " + quote(info.name));
      at = &at->children[info.name.substr(begin, dot - begin)];
    }
    if (begin == info.name.size())
      throw Error(ErrorKind::model, "the name of a tensor is no path of modules")
          .at("tensor " + quote(info.name));
    at->tensors.emplace(info.name.substr(begin), &info);
  }
  return std::make_shared<UnknownModel>(config, root, vocabulary);
}

}  // namespace graft
