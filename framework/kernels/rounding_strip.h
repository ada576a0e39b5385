#pragma once

#include "kernels/rounding.h"

// The body of round_strip for each instruction set, which the compiler makes of vectors of one row
// each. Included by rounding_<level>.cpp alone.


namespace graft::kernels {
namespace {

using Lanes = float __attribute__((vector_size(64), may_alias));
using Words = std::int32_t __attribute__((vector_size(64), may_alias));

constexpr Lanes all(float x) { return Lanes{} + x; }

inline Lanes select(Words mask, Lanes yes, Lanes no) {
  return reinterpret_cast<Lanes>((reinterpret_cast<Words>(yes) & mask) |
                                 (reinterpret_cast<Words>(no) & ~mask));
}
inline Lanes smaller(Lanes a, Lanes b) { return select(a < b, a, b); }
inline Lanes larger(Lanes a, Lanes b) { return select(a > b, a, b); }
inline Lanes magnitude(Lanes a) {
  return reinterpret_cast<Lanes>(reinterpret_cast<Words>(a) & 0x7fffffff);
}
/// To the nearest whole number, ties to even, for magnitudes below 2^22.
inline Lanes whole(Lanes x) {
  const Lanes shift = all(12582912.0F);
  return (x + shift) - shift;
}

inline float to_half(float x) {
  const float size = x < 0 ? -x : x;
  if (!(size < 65520.0F)) return x < 0 ? -65504.0F : 65504.0F;
  if (size < 6.103515625e-05F) {  // subnormal: steps of 2^-24
    const float scaled = size * 16777216.0F, shift = 8388608.0F;
    const float steps = (scaled + shift) - shift;
    return (x < 0 ? -steps : steps) / 16777216.0F;
  }
  auto bits = __builtin_bit_cast(std::uint32_t, x);
  bits += 0xfff + ((bits >> 13) & 1);
  return __builtin_bit_cast(float, bits & ~std::uint32_t{0x1fff});
}
inline float to_bfloat(float x) {
  auto bits = __builtin_bit_cast(std::uint32_t, x);
  bits += 0x7fff + ((bits >> 16) & 1);
  return __builtin_bit_cast(float, bits & ~std::uint32_t{0xffff});
}
inline float round_scale(float x, ScaleType type) {
  return type == ScaleType::float16 ? to_half(x) : type == ScaleType::bfloat16 ? to_bfloat(x) : x;
}
inline Lanes round_scales(Lanes x, ScaleType type) {
  if (type == ScaleType::float32) return x;
  for (int i = 0; i < kStripRows; ++i) x[i] = round_scale(x[i], type);
  return x;
}

struct UniformGrid {
  Lanes scale, inverse, zero, top;

  UniformGrid(const RoundingGrid& grid, Lanes s, Lanes z)
      : scale(s), inverse(select(s == 0, all(0), 1.0F / s)), zero(z),
        top(all(static_cast<float>(grid.top))) {}
  Lanes code(Lanes x) const {
    // Far outside, whole() would not do.
    const Lanes near = larger(smaller(x * inverse, top + 1.0F), -top - 1.0F);
    return smaller(larger(whole(near) + zero, all(0)), top);
  }
  Lanes value(Lanes code) const { return scale * (code - zero); }
};

struct LevelGrid {
  Lanes scale, inverse;
  const RoundingGrid& grid;

  LevelGrid(const RoundingGrid& g, Lanes s, Lanes)
      : scale(s), inverse(select(s == 0, all(0), 1.0F / s)), grid(g) {}
  Lanes code(Lanes x) const {
    const Lanes unit = x * inverse;
    Lanes code = all(0);
    for (int i = 0; i + 1 < grid.level_count; ++i)
      code = code + select(unit > all((grid.levels[i] + grid.levels[i + 1]) * 0.5F), all(1), all(0));
    return code;
  }
  Lanes value(Lanes code) const {
    Lanes level = all(grid.levels[0]);
    for (int i = 1; i < grid.level_count; ++i)
      level = select(code >= all(static_cast<float>(i)), all(grid.levels[i]), level);
    return scale * level;
  }
};

/// What a group's scale is chosen from: a share of the one that just covers the largest magnitude.
constexpr int kShares = 26;
constexpr float share(int i) { return 1.15F - 0.025F * static_cast<float>(i); }

template <class Grid>
class StripRounder {
 public:
  StripRounder(const RoundingProblem& problem, const RoundingGrid& grid, const Strip& strip)
      : p_(problem),
        grid_(grid),
        w_(reinterpret_cast<const Lanes*>(strip.weight)),
        d_(reinterpret_cast<Lanes*>(strip.deviation)),
        scales_(reinterpret_cast<Lanes*>(strip.scales)),
        targets_(reinterpret_cast<Lanes*>(strip.scratch)),
        codes_(strip.codes),
        zeros_(strip.zeros) {}

  void run() {
    for (std::int64_t g = 0; g < p_.groups; ++g) {
      const std::int64_t begin = p_.group_begin[g], end = p_.group_begin[g + 1];
      add_feedback(p_.factor, begin, end, 0, p_.factor ? begin : 0);
      if (!grid_.given_scales) search(g, begin, end);
      round_group(g, begin, end);
    }
    for (int sweep = 0; sweep < p_.sweeps; ++sweep)
      for (std::int64_t g = 0; g < p_.groups; ++g) descend(g);
  }

 private:
  /// targets = w + rows [begin, end) of `matrix` times the deviations of [first, last).
  void add_feedback(const float* matrix, std::int64_t begin, std::int64_t end, std::int64_t first,
                    std::int64_t last) {
    const std::int64_t n = p_.inputs;
    std::int64_t k = begin;
    for (; k + 4 <= end; k += 4) {
      const float* row = matrix + k * n;
      Lanes a = all(0), b = all(0), c = all(0), e = all(0);
      for (std::int64_t j = first; j < last; ++j) {
        const Lanes d = d_[j];
        a += row[j] * d;
        b += row[n + j] * d;
        c += row[2 * n + j] * d;
        e += row[3 * n + j] * d;
      }
      Lanes* t = targets_ + (k - begin);
      t[0] = w_[k] + a;
      t[1] = w_[k + 1] + b;
      t[2] = w_[k + 2] + c;
      t[3] = w_[k + 3] + e;
    }
    for (; k < end; ++k) {
      Lanes a = all(0);
      for (std::int64_t j = first; j < last; ++j) a += matrix[k * n + j] * d_[j];
      targets_[k - begin] = w_[k] + a;
    }
  }

  /// What the group would cost, without or with the feedback inside it.
  Lanes cost(const Grid& grid, std::int64_t begin, std::int64_t end) {
    Lanes sum = all(0);
    if (!p_.thorough) {
      for (std::int64_t k = begin; k < end; ++k) {
        const Lanes t = targets_[k - begin], off = t - grid.value(grid.code(t));
        sum += p_.cost[k] * (off * off);
      }
      return sum;
    }
    Lanes* off_weight = targets_ + (end - begin);
    for (std::int64_t k = begin; k < end; ++k) {
      Lanes t = targets_[k - begin];
      const float* row = p_.factor + k * p_.inputs + begin;
      for (std::int64_t j = 0; j < k - begin; ++j) t += row[j] * off_weight[j];
      const Lanes value = grid.value(grid.code(t)), off = t - value;
      off_weight[k - begin] = w_[k] - value;
      sum += p_.cost[k] * (off * off);
    }
    return sum;
  }

  void search(std::int64_t g, std::int64_t begin, std::int64_t end) {
    Lanes low = all(0), high = all(0);
    for (std::int64_t k = begin; k < end; ++k) {
      low = smaller(low, targets_[k - begin]);
      high = larger(high, targets_[k - begin]);
    }
    const Lanes top = all(static_cast<float>(grid_.top));
    const Lanes least = all(static_cast<float>(grid_.least_zero));
    const Lanes widest = larger(high, -low);
    const Lanes middle = all(static_cast<float>((grid_.top + 1) / 2));
    const float reach = grid_.levels ? 1.0F : static_cast<float>((grid_.top + 1) / 2);
    Lanes best = all(0), best_scale = all(0), best_zero = middle;
    bool any = false;
    const auto attempt = [&](Lanes scale, Lanes zero) {
      const Lanes found = cost(Grid(grid_, scale, zero), begin, end);
      const Words better = any ? found < best : found == found;
      best = any ? select(better, found, best) : found;
      best_scale = select(better, scale, best_scale);
      best_zero = select(better, zero, best_zero);
      any = true;
    };
    for (int i = 0; i < kShares; ++i) {
      if (grid_.own_zeros) {
        const Lanes scale = round_scales((high - low) * (share(i) / static_cast<float>(grid_.top)),
                                         grid_.scale_type);
        const Lanes inverse = select(scale == 0, all(0), 1.0F / scale);
        const Lanes zero = smaller(larger(whole(-low * share(i) * inverse), least), top);
        attempt(scale, zero);
        attempt(scale, smaller(zero + 1.0F, top));
        continue;
      }
      const Lanes scale = round_scales(widest * (share(i) / reach), grid_.scale_type);
      attempt(scale, middle);
      if (grid_.signed_scales) attempt(-scale, middle);
    }
    scales_[g] = best_scale;
    for (int r = 0; r < kStripRows; ++r)
      zeros_[g * kStripRows + r] = static_cast<std::uint8_t>(best_zero[r]);
  }

  Lanes zeros_of(std::int64_t g) const {
    Lanes out;
    for (int r = 0; r < kStripRows; ++r)
      out[r] = static_cast<float>(zeros_[g * kStripRows + r]);
    return out;
  }
  void put(std::int64_t k, Lanes code) {
    for (int r = 0; r < kStripRows; ++r)
      codes_[k * kStripRows + r] = static_cast<std::uint8_t>(code[r]);
  }
  Lanes code_of(std::int64_t k) const {
    Lanes out;
    for (int r = 0; r < kStripRows; ++r)
      out[r] = static_cast<float>(codes_[k * kStripRows + r]);
    return out;
  }

  void round_group(std::int64_t g, std::int64_t begin, std::int64_t end) {
    const Grid grid(grid_, scales_[g], zeros_of(g));
    for (std::int64_t k = begin; k < end; ++k) {
      Lanes t = targets_[k - begin];
      if (p_.factor) {
        const float* row = p_.factor + k * p_.inputs;
        for (std::int64_t j = begin; j < k; ++j) t += row[j] * d_[j];
      }
      const Lanes code = grid.code(t);
      put(k, code);
      d_[k] = w_[k] - grid.value(code);
    }
  }

  /// One visit to a group: its scale is fitted to its codes, then each code to all the others. All
  /// steps lower d H d^T.
  void descend(std::int64_t g) {
    const std::int64_t begin = p_.group_begin[g], end = p_.group_begin[g + 1], n = p_.inputs;
    // The pull of the other groups, a row of H times their deviations.
    add_feedback(p_.hessian, begin, end, 0, begin);
    Lanes* pull = targets_ + (end - begin);
    for (std::int64_t k = begin; k < end; ++k) pull[k - begin] = targets_[k - begin] - w_[k];
    add_feedback(p_.hessian, begin, end, end, n);
    for (std::int64_t k = begin; k < end; ++k) pull[k - begin] += targets_[k - begin] - w_[k];

    Lanes scale = scales_[g];
    const Lanes zero = zeros_of(g);
    if (!grid_.given_scales) {
      // With levels v fixed, d = w - s v: s = v (H w + pull) / v H v.
      const Grid unit(grid_, all(1), zero);
      Lanes* levels = targets_;
      for (std::int64_t k = begin; k < end; ++k) levels[k - begin] = unit.value(code_of(k));
      Lanes over = all(0), under = all(0);
      for (std::int64_t k = begin; k < end; ++k) {
        const Lanes v = levels[k - begin];
        Lanes hw = pull[k - begin], hv = all(0);
        const float* row = p_.hessian + k * n;
        for (std::int64_t j = begin; j < end; ++j) {
          hw += row[j] * w_[j];
          hv += row[j] * levels[j - begin];
        }
        over += v * hw;
        under += v * hv;
      }
      const Lanes fitted = round_scales(select(under > 0, over / under, scale), grid_.scale_type);
      scale = select(fitted == 0, scale, fitted);
      if (!grid_.signed_scales) scale = select(scale > 0, scale, scales_[g]);
      scales_[g] = scale;
      const Grid fitted_grid(grid_, scale, zero);
      for (std::int64_t k = begin; k < end; ++k) d_[k] = w_[k] - fitted_grid.value(code_of(k));
    }
    const Grid grid(grid_, scale, zero);
    for (std::int64_t k = begin; k < end; ++k) {
      const float* row = p_.hessian + k * n;
      Lanes sum = pull[k - begin] - row[k] * d_[k];
      for (std::int64_t j = begin; j < end; ++j) sum += row[j] * d_[j];
      const Lanes code = grid.code(w_[k] + sum * (1.0F / p_.diagonal[k]));
      put(k, code);
      d_[k] = w_[k] - grid.value(code);
    }
  }

  const RoundingProblem& p_;
  const RoundingGrid& grid_;
  const Lanes* w_;
  Lanes *d_, *scales_, *targets_;
  std::uint8_t *codes_, *zeros_;
};

inline void round_strip_here(const RoundingProblem& problem, const RoundingGrid& grid,
                             const Strip& strip) {
  if (grid.levels)
    StripRounder<LevelGrid>(problem, grid, strip).run();
  else
    StripRounder<UniformGrid>(problem, grid, strip).run();
}

}  // namespace
}  // namespace graft::kernels
