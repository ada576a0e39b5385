#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>
#include <new>

#include "graft/error.h"
#include "graft/pool.h"
#include "graft/rounding.h"
#include "kernels/rounding.h"
#include "kernels/scratch.h"
#include "plugins/one_torch_thread.h"

namespace graft {
namespace {

constexpr std::int64_t kWidth = kernels::kStripRows;

/// F lower triangular with F^T F = h, or undefined when h is not positive definite.
at::Tensor lower_factor(const at::Tensor& h) {
  const OneTorchThread guard;  // other numbers of threads give other bits
  const auto [factor, info] = at::linalg_cholesky_ex(h.flip({0, 1}));
  if (info.item<int>() != 0) return {};
  auto lower = factor.t().flip({0, 1}).contiguous();
  return lower.isfinite().all().item<bool>() ? lower : at::Tensor();
}

kernels::ScaleType scale_type(at::ScalarType dtype) {
  if (dtype == at::kHalf) return kernels::ScaleType::float16;
  if (dtype == at::kBFloat16) return kernels::ScaleType::bfloat16;
  if (dtype == at::kFloat) return kernels::ScaleType::float32;
  throw Error(ErrorKind::internal, "scales cannot be stored as " + std::string(dtype_word(dtype)));
}

/// [N, C] as strips [ceil(N / 16), C, 16], rows of zeros behind the last.
at::Tensor to_strips(const at::Tensor& rows) {
  const auto n = rows.size(0), padded = (n + kWidth - 1) / kWidth * kWidth;
  return at::constant_pad_nd(rows, {0, 0, 0, padded - n})
      .view({-1, kWidth, rows.size(1)})
      .transpose(1, 2)
      .contiguous();
}

at::Tensor from_strips(const at::Tensor& strips, std::int64_t n) {
  return strips.transpose(1, 2).reshape({-1, strips.size(1)}).narrow(0, 0, n);
}

}  // namespace

RoundingOptions RoundingOptions::of(Recipe recipe) {
  RoundingOptions options;
  options.thorough = recipe != Recipe::fast;
  options.sweeps = recipe == Recipe::fast ? 0 : recipe == Recipe::best ? 6 : 2;
  return options;
}

struct WeightRounder::Prepared {
  RoundingOptions options;
  std::int64_t inputs = 0;
  at::Tensor order;       ///< [K] int64, the input that is rounded k-th; undefined: as they are
  at::Tensor group_ids;   ///< [groups] int64, in the order they are rounded in
  std::vector<std::int32_t> begin;
  at::Tensor factor, cost, hessian, diagonal;
  std::string fallback;

  void order_inputs(const at::Tensor& weights) {
    const auto size = options.group_size, whole = inputs / size * size;
    if (options.order == RoundingOrder::activation) {
      order = at::argsort(weights, /*stable=*/true, 0, /*descending=*/true);
    } else if (options.order == RoundingOrder::grouped && whole > 0) {
      const auto in_groups = weights.narrow(0, 0, whole).view({-1, size});
      auto ids = at::argsort(in_groups.mean(1), true, 0, true);
      const auto inside = at::argsort(in_groups, true, 1, true).index_select(0, ids);
      order = (inside + ids.unsqueeze(1) * size).view({-1});
      if (whole < inputs) {
        const auto rest = at::argsort(weights.narrow(0, whole, inputs - whole), true, 0, true);
        order = at::cat({order, rest + whole});
        ids = at::cat({ids, at::full({1}, whole / size, ids.options())});
      }
      group_ids = ids;
    }
  }

  /// Damped and shrunk, in order, with its factor; false when it has none.
  bool factorize(const at::Tensor& h) {
    const double mean = h.diagonal().mean().item<double>();
    auto shrunk = h * (1 - options.shrinkage);
    auto diagonal_now = h.diagonal().clone();
    diagonal_now.masked_fill_(diagonal_now <= 0, mean);  // inputs that are always zero
    for (double damping = options.damping, tries = 0; tries < 3; damping *= 10, ++tries) {
      shrunk.diagonal().copy_(diagonal_now + damping * mean);
      auto lower = lower_factor(shrunk);
      if (!lower.defined() && tries == 2) {
        lower = lower_factor(shrunk.to(at::kDouble));
        if (lower.defined()) lower = lower.to(at::kFloat);
      }
      if (!lower.defined()) continue;
      const auto roots = lower.diagonal().clone();
      factor = lower.div_(roots.unsqueeze(1));
      cost = roots.square();
      if (options.sweeps > 0) {
        hessian = shrunk;
        diagonal = shrunk.diagonal().clone();
      }
      return true;
    }
    return false;
  }
};

WeightRounder::WeightRounder(std::int64_t inputs, const InputStatistics& statistics,
                             const RoundingOptions& options)
    : prepared_(std::make_unique<Prepared>()) {
  auto& p = *prepared_;
  p.options = options;
  p.inputs = inputs;
  if (options.group_size < 1) p.options.group_size = inputs;
  const auto size = p.options.group_size;
  for (std::int64_t at = 0; at < inputs; at += size)
    p.begin.push_back(static_cast<std::int32_t>(at));
  p.begin.push_back(static_cast<std::int32_t>(inputs));

  at::Tensor h = statistics.tokens > 0 ? statistics.hessian : at::Tensor();
  if (h.defined()) {
    if (h.dim() != 2 || h.size(0) != inputs || h.size(1) != inputs)
      throw Error(ErrorKind::internal, "the statistics belong to another input")
          .expected(std::to_string(inputs) + " inputs")
          .found(std::to_string(h.size(0)));
    h = h.to(at::kFloat);
    const auto diagonal = h.diagonal();
    if (!h.isfinite().all().item<bool>())
      p.fallback = "the input is not finite somewhere in the calibration text";
    else if (diagonal.max().item<float>() <= 0)
      p.fallback = "the input is zero in all of the calibration text";
    else {
      p.order_inputs(diagonal);
      if (p.order.defined()) h = h.index_select(0, p.order).index_select(1, p.order);
      if (!p.factorize(h)) {
        p.fallback = "the second moment of the input is not positive definite";
        p.order = p.group_ids = at::Tensor();
      } else if (p.group_ids.defined()) {
        // A short group comes last here too.
        p.begin.assign(1, 0);
        const auto* ids = p.group_ids.const_data_ptr<std::int64_t>();
        for (std::int64_t g = 0; g < p.group_ids.size(0); ++g)
          p.begin.push_back(p.begin.back() + static_cast<std::int32_t>(
                                                 std::min(size, inputs - ids[g] * size)));
      }
    }
  }
  if (!p.cost.defined()) p.cost = at::ones({inputs}, at::kFloat);
}

WeightRounder::~WeightRounder() = default;
WeightRounder::WeightRounder(WeightRounder&&) noexcept = default;

std::int64_t WeightRounder::groups() const {
  return static_cast<std::int64_t>(prepared_->begin.size()) - 1;
}

at::Tensor WeightRounder::group_of() const {
  const auto& p = *prepared_;
  if (p.options.order != RoundingOrder::activation || !p.order.defined()) return {};
  auto out = at::empty({p.inputs}, at::kInt);
  out.index_put_({p.order}, (at::arange(p.inputs, at::kLong) / p.options.group_size).floor().to(at::kInt));
  return out;
}

const std::string& WeightRounder::fallback() const { return prepared_->fallback; }

RoundedWeight WeightRounder::round(const at::Tensor& weight, const WeightGrid& grid) const {
  return round(weight, grid, {});
}

RoundedWeight WeightRounder::round(const at::Tensor& weight, const WeightGrid& grid,
                                   const at::Tensor& given_scales) const {
  const auto& p = *prepared_;
  const auto n = weight.size(0), k = p.inputs, g = groups();
  if (!weight.isfinite().all().item<bool>())
    throw Error(ErrorKind::model, "the weight holds a number that is not finite");
  auto rows = weight.to(at::kFloat);
  if (p.order.defined()) rows = rows.index_select(1, p.order);
  const auto strips = to_strips(rows);
  const auto count = strips.size(0);
  auto codes = at::empty({count, k, kWidth}, at::kByte);
  auto zeros = at::empty({count, g, kWidth}, at::kByte);
  at::Tensor scales;
  if (given_scales.defined()) {
    auto in_order = given_scales.to(at::kFloat);
    if (p.group_ids.defined()) in_order = in_order.index_select(1, p.group_ids);
    scales = to_strips(in_order);
    zeros.fill_(1 << (grid.bits - 1));
  } else {
    scales = at::empty({count, g, kWidth}, at::kFloat);
  }

  kernels::RoundingGrid levels;
  if (!grid.levels.empty()) {
    levels.levels = grid.levels.data();
    levels.level_count = static_cast<int>(grid.levels.size());
  }
  levels.top = (1 << grid.bits) - 1;
  levels.own_zeros = grid.own_zeros;
  levels.least_zero = grid.least_zero;
  levels.signed_scales = grid.signed_scales;
  levels.given_scales = given_scales.defined();
  levels.scale_type = scale_type(grid.scale_dtype);

  kernels::RoundingProblem problem;
  problem.inputs = k;
  problem.groups = g;
  problem.group_begin = p.begin.data();
  problem.cost = p.cost.const_data_ptr<float>();
  if (p.factor.defined()) {
    problem.factor = p.factor.const_data_ptr<float>();
    problem.thorough = p.options.thorough;
    if (p.hessian.defined()) {
      problem.hessian = p.hessian.const_data_ptr<float>();
      problem.diagonal = p.diagonal.const_data_ptr<float>();
      problem.sweeps = p.options.sweeps;
    }
  }
  std::int64_t largest = 0;
  for (std::int64_t i = 0; i < g; ++i) largest = std::max<std::int64_t>(largest, p.begin[i + 1] - p.begin[i]);

  const auto round_strip = kernels::round_strip(kernels::cpu_level());
  const float* from = strips.const_data_ptr<float>();
  auto* to_codes = codes.mutable_data_ptr<std::uint8_t>();
  auto* to_zeros = zeros.mutable_data_ptr<std::uint8_t>();
  auto* to_scales = scales.mutable_data_ptr<float>();
  std::atomic<bool> no_memory = false;
  for_each_chunk(pool(), count, [&](std::int64_t i) {
    static thread_local kernels::Scratch scratch;
    try {
      auto* memory = reinterpret_cast<float*>(
          scratch.at_least((k + 2 * largest) * kWidth * static_cast<std::int64_t>(sizeof(float))));
      round_strip(problem, levels,
                  {from + i * k * kWidth, memory, to_codes + i * k * kWidth,
                   to_scales + i * g * kWidth, to_zeros + i * g * kWidth, memory + k * kWidth});
    } catch (const std::bad_alloc&) {
      no_memory = true;
    }
  });
  if (no_memory) throw std::bad_alloc();

  RoundedWeight out;
  out.codes = from_strips(codes, n);
  if (p.order.defined()) out.codes = at::empty_like(out.codes).index_copy_(1, p.order, out.codes);
  const auto in_own_order = [&](const at::Tensor& of_groups) {
    const auto found = from_strips(of_groups, n);
    return p.group_ids.defined() ? at::empty_like(found).index_copy_(1, p.group_ids, found)
                                 : found.contiguous();
  };
  out.scales = in_own_order(scales).to(grid.scale_dtype);
  if (grid.levels.empty()) out.zeros = in_own_order(zeros);
  return out;
}

}  // namespace graft
