#include "graft/nn/block.h"

#include <doctest/doctest.h>

#include "graft/error.h"
#include "graft/module_graph.h"
#include "graft/nn/layers.h"

using namespace graft;
using nn::Block;
using nn::Linear;
using nn::Slot;
using nn::Unary;

namespace {

std::shared_ptr<Linear> ones(std::int64_t in, std::int64_t out) {
  auto linear = std::make_shared<Linear>(in, out, false, at::TensorOptions(at::kFloat));
  linear->set_tensor("weight", torch::ones({out, in}));
  return linear;
}

struct Pair : Block {
  Pair() : Block("Pair") {}
  torch::Tensor forward(const torch::Tensor& x) { return second->forward(first->forward(x)); }
  Slot<Unary> first{*this, "first", ones(2, 2)};
  Slot<Unary> second{*this, "second", ones(2, 1)};
};

}  // namespace

TEST_CASE("a replaced child is what forward calls and what the registered list holds") {
  auto pair = std::make_shared<Pair>();
  CHECK(pair->forward(torch::ones({1, 2})).item<float>() == 4);
  auto next = ones(2, 2);
  next->set_tensor("weight", torch::full({2, 2}, 3.0F));
  const auto former = replace_at(pair, "first", next);
  CHECK(class_name_of(*former) == "Linear");
  CHECK(pair->forward(torch::ones({1, 2})).item<float>() == 12);
  CHECK(pair->named_children()["first"].get() == pair->first.get().get());
}

TEST_CASE("a child of another interface is refused and nothing changes") {
  auto pair = std::make_shared<Pair>();
  const auto before = pair->first.get();
  CHECK_THROWS_AS(replace_at(pair, "first", std::make_shared<Pair>()), Error);
  CHECK(pair->first.get() == before);
  CHECK(pair->named_children()["first"].get() == before.get());
}

TEST_CASE("a slot without a module, and a replacement that is none, are refused") {
  struct Hollow : Block {
    Hollow() : Block("Hollow") {}
    Slot<Unary> child{*this, "child", nullptr};
  };
  CHECK_THROWS_WITH_AS(std::make_shared<Hollow>(),
                       doctest::Contains("the slot 'child' of a Hollow is empty"), Error);
  auto pair = std::make_shared<Pair>();
  CHECK_THROWS_WITH_AS(replace_at(pair, "first", nullptr),
                       doctest::Contains("no replacement was given"), Error);
  CHECK(pair->first.get());
}

TEST_CASE("an unknown path names its neighbours") {
  auto pair = std::make_shared<Pair>();
  CHECK_THROWS_WITH_AS(get_module_from_name(pair, "frist"),
                       doctest::Contains("did you mean 'first'"), Error);
}

TEST_CASE("a block moves with its children: what forward uses and what is registered") {
  auto pair = std::make_shared<Pair>();
  pair->to(at::kMeta);  // as good a device as any
  for (const auto& parameter : pair->named_parameters()) CHECK(parameter.value().is_meta());
  CHECK(pair->forward(torch::ones({1, 2}, at::kMeta)).is_meta());
}

TEST_CASE("what replaces a module runs where that one ran") {
  auto pair = std::make_shared<Pair>();
  std::dynamic_pointer_cast<Block>(pair->child("first"))->set_execution_device(at::Device(at::kMeta));
  replace_at(pair, "first", ones(2, 2));
  replace_at(pair, "second", ones(2, 1));
  CHECK(pair->first->execution_device() == at::Device(at::kMeta));
  CHECK_FALSE(pair->second->execution_device());
  CHECK(pair->first->run(torch::ones({1, 2})).is_meta());
}
