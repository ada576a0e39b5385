#include "calibrating/fiber.h"

#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include <stdexcept>
#include <string>

using graft::Fiber;

TEST_CASE("a function is left in its middle and gone on with, beside another") {
  std::string order;
  Fiber *first = nullptr, *second = nullptr;
  Fiber a([&] {
    order += "a";
    first->leave();
    order += "c";
  });
  Fiber b([&] {
    order += "b";
    second->leave();
    order += "d";
  });
  first = &a;
  second = &b;
  for (int i = 0; i < 2; ++i) {
    a.resume();
    b.resume();
  }
  CHECK(order == "abcd");
  CHECK(a.ended());
  CHECK(b.ended());
}

TEST_CASE("what a function on a stack of its own throws comes out where it was resumed") {
  Fiber* self = nullptr;
  Fiber fiber([&] {
    self->leave();
    throw std::runtime_error("from inside");
  });
  self = &fiber;
  fiber.resume();
  CHECK_FALSE(fiber.ended());
  CHECK_THROWS_WITH(fiber.resume(), "from inside");
  CHECK(fiber.ended());
}

TEST_CASE("LibTorch's modes of the function and of those around it do not meet") {
  Fiber* self = nullptr;
  bool inside_after = false;
  Fiber fiber([&] {
    const c10::InferenceMode guard;
    self->leave();
    inside_after = c10::InferenceMode::is_enabled();
  });
  self = &fiber;
  fiber.resume();
  CHECK_FALSE(c10::InferenceMode::is_enabled());
  fiber.resume();
  CHECK(inside_after);
  CHECK_FALSE(c10::InferenceMode::is_enabled());
}

TEST_CASE("a function that was never begun goes away in silence") {
  bool begun = false;
  { Fiber fiber([&] { begun = true; }); }
  CHECK_FALSE(begun);
}
