#include "cuda/device_weight.h"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <vector>

using namespace graft;
using namespace graft::cuda;
using kernels::PanelKind;

namespace {

struct Layer {
  std::int64_t n, k, group;
};
constexpr Layer kLayers[] = {{40, 96, 32}, {72, 192, 128}, {56, 176, 176}};
const c10::Device kDevice(at::kCPU);  // of the emulation

/// A layer as a module has it on the CPU, with all that it may say.
struct Panels {
  kernels::PanelTensors panels;
  at::Tensor dense;  ///< [n, k] float64, inputs in x's order
};

/// Scales are numbers of `dtype`, which packing for it does not change.
Panels random_panels(PanelKind kind, const Layer& layer, bool act_order, at::ScalarType dtype) {
  const auto [n, k, group] = layer;
  const auto shape = kernels::panel_shape(kind, n, k, group);
  Panels out;
  out.panels = kernels::empty_panels(shape);
  const int codes = kind == PanelKind::int8 ? 256 : 16;
  const auto plain = at::randint(0, codes, {k, n}, at::kByte);
  const auto read = [](const void* self, std::int64_t panel, std::int64_t first,
                       std::int64_t count, std::uint8_t* to) {
    const auto& from = *static_cast<const at::Tensor*>(self);
    const std::int64_t output = panel * kernels::kPanelWidth;
    const std::int64_t width = std::min(kernels::kPanelWidth, from.size(1) - output);
    for (std::int64_t i = 0; i < count; ++i)
      std::copy_n(from.const_data_ptr<std::uint8_t>() + (first + i) * from.size(1) + output, width,
                  to + i * kernels::kPanelWidth);
  };
  kernels::pack_panels(shape, {+read, &plain}, 0, shape.panels,
                       out.panels.codes.mutable_data_ptr<std::uint8_t>());
  const auto scales = (at::rand({shape.groups, n}) * 0.01 + 0.005).to(dtype).to(at::kFloat);
  out.panels.scales = kernels::by_panel(shape, scales);
  const auto of_input = at::arange(k).floor_divide(group);
  auto levels = plain.to(at::kDouble);
  if (kind == PanelKind::table4) {
    out.panels.table = at::linspace(-1, 1, 16);
    levels = out.panels.table.to(at::kDouble).index({plain.to(at::kLong)});
  } else {
    const auto zeros = at::randint(0, codes + 1, {shape.groups, n}, at::kShort);
    out.panels.zeros = kernels::by_panel(shape, zeros.to(out.panels.zeros.scalar_type()));
    levels = levels - zeros.index_select(0, of_input).to(at::kDouble);
  }
  out.dense = (levels * scales.index_select(0, of_input).to(at::kDouble)).t().contiguous();
  if (act_order) {
    const auto order = at::randperm(k);
    out.panels.order = order.to(at::kInt);
    out.dense = at::empty_like(out.dense).index_copy_(1, order, out.dense);
  }
  return out;
}

std::unique_ptr<DeviceWeight> on_device(const Panels& from, at::ScalarType dtype) {
  auto out = std::make_unique<DeviceWeight>();
  out->take(from.panels, dtype, kDevice, [&] { return from.dense; });
  return out;
}

/// Whether y is x W^T + bias, in the Euclidean norm: two roundings.
bool is_product(const at::Tensor& y, const at::Tensor& x, const Panels& weight,
                const at::Tensor& bias) {
  auto expected = at::mm(x.to(at::kDouble), weight.dense.t());
  if (bias.defined()) expected = expected + bias.to(at::kDouble);
  return y.scalar_type() == x.scalar_type() &&
         ((y.to(at::kDouble) - expected).norm() / expected.norm()).item<double>() < 0x1p-8;
}

template <class Check>
void each_weight(const Check& check) {
  at::manual_seed(1);
  for (const auto dtype : {at::kHalf, at::kBFloat16})
    for (const auto kind : {PanelKind::int4, PanelKind::int8, PanelKind::table4})
      for (const auto& layer : kLayers)
        for (const bool act_order : {false, true}) {
          if (act_order && kind == PanelKind::table4) continue;  // no format has it
          CAPTURE(c10::toString(dtype));
          CAPTURE(static_cast<int>(kind));
          CAPTURE(layer.n);
          CAPTURE(act_order);
          check(kind, layer, act_order, dtype);
        }
}

}  // namespace

TEST_CASE("a weight comes back from an emulated device as it went there, and dense as it is") {
  each_weight([](PanelKind kind, const Layer& layer, bool act_order, at::ScalarType dtype) {
    const auto from = random_panels(kind, layer, act_order, dtype);
    const auto weight = on_device(from, dtype);
    REQUIRE(weight->is_packed());
    const auto back = weight->panels();
    CHECK(back.codes.equal(from.panels.codes));
    CHECK(back.scales.equal(from.panels.scales));
    CHECK(back.zeros.defined() == from.panels.zeros.defined());
    if (back.zeros.defined()) CHECK(back.zeros.equal(from.panels.zeros));
    if (back.table.defined()) CHECK(back.table.equal(from.panels.table));
    CHECK(back.order.defined() == act_order);
    if (act_order) CHECK(back.order.equal(from.panels.order));
    CHECK(weight->dequantized(at::kFloat).equal(from.dense.to(at::kFloat)));
    const auto words = at::empty({layer.k / (kind == PanelKind::int8 ? 4 : 8), layer.n}, at::kInt);
    CHECK(weight->codes_as(words).sizes() == words.sizes());
  });
}

TEST_CASE("a weight on an emulated device multiplies rows of any number and type") {
  each_weight([](PanelKind kind, const Layer& layer, bool act_order, at::ScalarType dtype) {
    const auto from = random_panels(kind, layer, act_order, dtype);
    const auto weight = on_device(from, dtype);
    for (const std::int64_t m : {1, 5, 17, 70})
      for (const auto type : {dtype, at::kFloat}) {
        const auto x = at::randn({m, layer.k}).to(type);
        const auto bias = m % 2 ? at::randn({layer.n}) : at::Tensor();
        CAPTURE(m);
        CHECK(is_product(weight->multiply(x, bias), x, from, bias));
      }
  });
}

TEST_CASE("weights of 4 bits that are alike multiply their rows together, others do not") {
  each_weight([](PanelKind kind, const Layer& layer, bool act_order, at::ScalarType dtype) {
    std::vector<Panels> from;
    std::vector<std::unique_ptr<DeviceWeight>> weights;
    std::vector<DeviceWeight::Part> parts;
    for (const std::int64_t rows : {1, 3, 12, 1}) {
      from.push_back(random_panels(kind, layer, act_order, dtype));
      weights.push_back(on_device(from.back(), dtype));
      const auto bias = rows == 3 ? at::randn({layer.n}) : at::Tensor();
      parts.push_back({weights.back().get(), bias, rows});
    }
    const auto x = at::randn({17, layer.k}).to(dtype);
    const auto y = DeviceWeight::multiply(x, parts);
    CHECK(y.defined() == (kind != PanelKind::int8));
    if (!y.defined()) return;
    CHECK(y.sizes() == at::IntArrayRef{17, layer.n});
    std::int64_t first = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const auto rows = parts[i].rows;
      CHECK(is_product(y.narrow(0, first, rows), x.narrow(0, first, rows), from[i], parts[i].bias));
      first += rows;
    }

    const auto refuse = [&](const Panels& other) {
      const auto weight = on_device(other, dtype);
      const std::vector<DeviceWeight::Part> mixed{{weights[0].get(), {}, 1}, {weight.get(), {}, 1}};
      CHECK_FALSE(DeviceWeight::multiply(x.narrow(0, 0, 2), mixed).defined());
    };
    CHECK_FALSE(DeviceWeight::multiply(x.to(at::kFloat), parts).defined());
    const auto wide = at::randn({4 * 32 + 1, layer.k}).to(dtype);
    parts.back().rows += wide.size(0) - x.size(0);
    CHECK_FALSE(DeviceWeight::multiply(wide, parts).defined());
    refuse(random_panels(kind, {layer.n + 8, layer.k, layer.group}, act_order, dtype));
    refuse(random_panels(kind, {layer.n, layer.k, 64}, act_order, dtype));
    if (kind == PanelKind::int4) refuse(random_panels(kind, layer, !act_order, dtype));
    if (kind == PanelKind::table4) {
      auto other = from.front();
      other.panels.table = at::linspace(-1, 2, 16);
      refuse(other);
    }
  });
}

TEST_CASE("a weight that no kernel takes is a dense copy on an emulated device") {
  const auto from = random_panels(PanelKind::int8, {16, 56, 8}, false, at::kHalf);
  const auto weight = on_device(from, at::kHalf);
  CHECK(weight->defined());
  CHECK_FALSE(weight->is_packed());
  const auto x = at::randn({3, 56}).to(at::kHalf);
  CHECK(is_product(weight->multiply(x, at::Tensor()), x, from, {}));
  const std::vector<DeviceWeight::Part> parts{{weight.get(), {}, 3}};
  CHECK_FALSE(DeviceWeight::multiply(x, parts).defined());
}
