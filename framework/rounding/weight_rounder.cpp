#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <atomic>
#include <new>

#include "distributing/shared_work.h"
#include "graft/error.h"
#include "graft/pool.h"
#include "graft/rounding.h"
#include "kernels/rounding.h"
#include "kernels/scratch.h"
#include "plugins/one_torch_thread.h"

namespace graft {
namespace {

constexpr std::int64_t kWidth = kernels::kStripRows;

/// F lower triangular with F^T F = h, or undefined when h is not positive definite. `backwards`
/// [K, K] contiguous is h with its rows and columns in reverse; its memory becomes F's, because
/// four of them at once are most of what rounding a large layer takes.
at::Tensor lower_factor(at::Tensor backwards) {
  const OneTorchThread guard;    // other numbers of threads give other bits
  auto columns = backwards.t();  // the same matrix, in the order that LAPACK works in
  auto info = at::empty({}, at::kInt);
  at::linalg_cholesky_ex_out(columns, info, columns);
  if (info.item<int>() != 0) return {};
  const auto reverse = [&](auto* first) { std::reverse(first, first + backwards.numel()); };
  if (backwards.scalar_type() == at::kDouble)
    reverse(backwards.mutable_data_ptr<double>());
  else
    reverse(backwards.mutable_data_ptr<float>());
  return backwards.diagonal().isfinite().all().item<bool>() ? backwards : at::Tensor();
}

kernels::ScaleType scale_type(at::ScalarType dtype) {
  if (dtype == at::kHalf) return kernels::ScaleType::float16;
  if (dtype == at::kBFloat16) return kernels::ScaleType::bfloat16;
  if (dtype == at::kFloat) return kernels::ScaleType::float32;
  throw Error(ErrorKind::internal, "scales cannot be stored as " + std::string(dtype_word(dtype)));
}

/// [N, C] and the order of its columns, read and written a strip at a time.
struct Columns {
  std::int64_t count = 0;
  const std::int64_t* order = nullptr;  ///< [C], column k of a strip is order[k]; null: k

  std::int64_t of(std::int64_t k) const { return order ? order[k] : k; }
  /// `rows` [R, C] to [C, 16], zeros for the rows that lack.
  void to_strip(const float* rows, std::int64_t r, float* strip) const {
    if (r < kWidth) std::fill_n(strip, count * kWidth, 0.0F);
    for (std::int64_t row = 0; row < r; ++row)
      for (std::int64_t k = 0; k < count; ++k) strip[k * kWidth + row] = rows[row * count + of(k)];
  }
  template <class T>
  void from_strip(const T* strip, std::int64_t r, T* rows) const {
    for (std::int64_t row = 0; row < r; ++row)
      for (std::int64_t k = 0; k < count; ++k) rows[row * count + of(k)] = strip[k * kWidth + row];
  }
};

const std::int64_t* data_or_null(const at::Tensor& order) {
  return order.defined() ? order.const_data_ptr<std::int64_t>() : nullptr;
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
  at::Tensor order;      ///< [K] int64, the input that is rounded k-th; undefined: as they are
  at::Tensor group_ids;  ///< [groups] int64, in the order they are rounded in
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

  /// h [K, K] in the order of rounding, or the reverse of it, with another diagonal and the rest
  /// shrunk.
  at::Tensor arranged(const at::Tensor& h, const at::Tensor& new_diagonal, bool backwards) const {
    const auto k = inputs;
    auto out = at::empty({k, k}, at::kFloat);
    const auto* from = h.const_data_ptr<float>();
    const auto* own = new_diagonal.const_data_ptr<float>();
    const auto* source = data_or_null(order);
    auto* to = out.mutable_data_ptr<float>();
    const auto keep = static_cast<float>(1 - options.shrinkage);
    const auto at = [&](std::int64_t i) {
      const auto place = backwards ? k - 1 - i : i;
      return source ? source[place] : place;
    };
    for_each_chunk(pool(), k, [&](std::int64_t i) {
      const auto* row = from + at(i) * k;
      for (std::int64_t j = 0; j < k; ++j) to[i * k + j] = row[at(j)] * keep;
      to[i * k + i] = own[at(i)];
    });
    return out;
  }

  /// The factor of h, damped and shrunk; false when it has none.
  bool factorize(const at::Tensor& h) {
    const double mean = h.diagonal().mean().item<double>();
    auto own = h.diagonal().clone();
    own.masked_fill_(own <= 0, mean);  // inputs that are always zero
    for (double damping = options.damping, tries = 0; tries < 3; damping *= 10, ++tries) {
      const auto damped = own + damping * mean;
      auto lower = lower_factor(arranged(h, damped, /*backwards=*/true));
      if (!lower.defined() && tries == 2) {
        lower = lower_factor(arranged(h, damped, true).to(at::kDouble));
        if (lower.defined()) lower = lower.to(at::kFloat);
      }
      if (!lower.defined()) continue;
      const auto roots = lower.diagonal().clone();
      factor = lower.div_(roots.unsqueeze(1));
      cost = roots.square();
      if (options.sweeps > 0) {
        hessian = arranged(h, damped, false);
        diagonal = hessian.diagonal().clone();
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
    h = h.to(at::kFloat).contiguous();
    const auto diagonal = h.diagonal();
    if (!h.isfinite().all().item<bool>())
      p.fallback = "the input is not finite somewhere in the calibration text";
    else if (diagonal.max().item<float>() <= 0)
      p.fallback = "the input is zero in all of the calibration text";
    else {
      p.order_inputs(diagonal);
      if (!p.factorize(h)) {
        p.fallback = "the second moment of the input is not positive definite";
        p.order = p.group_ids = at::Tensor();
      } else if (p.group_ids.defined()) {
        // A short group comes last here too.
        p.begin.assign(1, 0);
        const auto* ids = p.group_ids.const_data_ptr<std::int64_t>();
        for (std::int64_t g = 0; g < p.group_ids.size(0); ++g)
          p.begin.push_back(p.begin.back() +
                            static_cast<std::int32_t>(std::min(size, inputs - ids[g] * size)));
      }
    }
  }
  if (!p.cost.defined()) p.cost = at::ones({inputs}, at::kFloat);
}

WeightRounder::WeightRounder(std::unique_ptr<Prepared> prepared) : prepared_(std::move(prepared)) {}

WeightRounder WeightRounder::scaled(const at::Tensor& scales) const {
  auto out = std::make_unique<Prepared>(*prepared_);
  if (!out->factor.defined()) return WeightRounder(std::move(out));
  const auto s = out->order.defined() ? scales.index_select(0, out->order) : scales;
  // F of S^-1 H S^-1 is F S^-1, of which each row is divided by what is on its diagonal.
  out->factor = (out->factor / s).mul_(s.unsqueeze(1));
  out->cost = out->cost / s.square();
  if (out->hessian.defined()) {
    out->hessian = (out->hessian / s).div_(s.unsqueeze(1));
    out->diagonal = out->hessian.diagonal().clone();
  }
  return WeightRounder(std::move(out));
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
  out.index_put_({p.order},
                 (at::arange(p.inputs, at::kLong) / p.options.group_size).floor().to(at::kInt));
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
  RoundedWeight out;
  out.codes = at::empty({n, k}, at::kByte);
  auto zeros = at::empty({n, g}, at::kByte);
  auto scales = given_scales.defined() ? given_scales.to(at::kFloat).contiguous().clone()
                                       : at::empty({n, g}, at::kFloat);

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
  for (std::int64_t i = 0; i < g; ++i)
    largest = std::max<std::int64_t>(largest, p.begin[i + 1] - p.begin[i]);

  const auto round_strip = kernels::round_strip(kernels::cpu_level());
  const Columns inputs{k, data_or_null(p.order)}, groups_of_inputs{g, data_or_null(p.group_ids)};
  auto* to_codes = out.codes.mutable_data_ptr<std::uint8_t>();
  auto* to_zeros = zeros.mutable_data_ptr<std::uint8_t>();
  auto* to_scales = scales.mutable_data_ptr<float>();
  std::atomic<bool> no_memory = false;
  const SharedWork work((n + kWidth - 1) / kWidth);
  for_each_chunk(pool(), work.count(), [&](std::int64_t strip) {
    static thread_local kernels::Scratch scratch;
    const c10::InferenceMode guard;
    try {
      const auto first = (work.first() + strip) * kWidth, height = std::min(kWidth, n - first);
      const auto rows = weight.narrow(0, first, height).to(at::kFloat).contiguous();
      auto* values = reinterpret_cast<float*>(scratch.at_least(
          kWidth * ((2 * k + 2 * largest + g) * static_cast<std::int64_t>(sizeof(float)) + k + g)));
      auto* deviation = values + k * kWidth;
      auto* tried = deviation + k * kWidth;
      auto* strip_scales = tried + 2 * largest * kWidth;
      auto* strip_codes = reinterpret_cast<std::uint8_t*>(strip_scales + g * kWidth);
      auto* strip_zeros = strip_codes + k * kWidth;
      inputs.to_strip(rows.const_data_ptr<float>(), height, values);
      if (levels.given_scales) {
        groups_of_inputs.to_strip(to_scales + first * g, height, strip_scales);
        std::fill_n(strip_zeros, g * kWidth, static_cast<std::uint8_t>(1 << (grid.bits - 1)));
      }
      round_strip(problem, levels,
                  {values, deviation, strip_codes, strip_scales, strip_zeros, tried});
      inputs.from_strip(strip_codes, height, to_codes + first * k);
      groups_of_inputs.from_strip(strip_scales, height, to_scales + first * g);
      groups_of_inputs.from_strip(strip_zeros, height, to_zeros + first * g);
    } catch (const std::bad_alloc&) {
      no_memory = true;
    }
  });
  if (no_memory) throw std::bad_alloc();
  work.complete({out.codes, scales, zeros}, kWidth);

  out.scales = scales.to(grid.scale_dtype);
  if (grid.levels.empty()) out.zeros = zeros;
  return out;
}

}  // namespace graft
