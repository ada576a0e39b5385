// The body of rows_<level>.cpp: row operations over 16 lanes, written once. The file that includes
// it defines before: struct Level with fma(a, b, c), sum(v) in the order 8, 4, 2, 1, widen_f16 and
// round_f16.

namespace graft::kernels {
namespace {

#define GRAFT_LANES [[gnu::always_inline]] inline

constexpr std::int64_t whole_pairs(std::int64_t n) {
  return (n + 2 * kLanes - 1) / (2 * kLanes) * 2 * kLanes;
}

GRAFT_LANES Lanes load(const float* from) {
  Lanes v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

/// The first `count` lanes, zeros behind them.
GRAFT_LANES Lanes load(const float* from, std::int64_t count) {
  if (count >= kLanes) return load(from);
  float some[kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) some[i] = from[i];
  return load(some);
}

GRAFT_LANES void store(float* to, Lanes v) { __builtin_memcpy(to, &v, sizeof(v)); }

GRAFT_LANES void store(float* to, Lanes v, std::int64_t count) {
  if (count >= kLanes) return store(to, v);
  float some[kLanes];
  store(some, v);
  for (std::int64_t i = 0; i < count; ++i) to[i] = some[i];
}

GRAFT_LANES Lanes all(float x) { return Lanes{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

template <ElementType type>
GRAFT_LANES Lanes rounded(Lanes v) {
  if constexpr (type == ElementType::f16) return Level::round_f16(v);
  if constexpr (type == ElementType::bf16) {
    const auto bits = reinterpret_cast<LaneBits>(v);
    const LaneBits nearest = bits + 0x7FFFU + (bits >> 16 & 1U);
    const LaneBits chosen = v == v ? nearest : bits | 0x400000U;
    return reinterpret_cast<Lanes>(chosen & 0xFFFF0000U);
  }
  return v;
}

/// 32 elements: in bfloat16 those at even and at odd places, else the first and the last 16.
template <ElementType type>
GRAFT_LANES void load_pair(const void* from, Lanes& a, Lanes& b) {
  if constexpr (type == ElementType::bf16) {
    LaneBits bits;
    __builtin_memcpy(&bits, from, sizeof(bits));
    a = reinterpret_cast<Lanes>(bits << 16);
    b = reinterpret_cast<Lanes>(bits & 0xFFFF0000U);
  } else if constexpr (type == ElementType::f16) {
    a = Level::widen_f16(static_cast<const std::uint16_t*>(from));
    b = Level::widen_f16(static_cast<const std::uint16_t*>(from) + kLanes);
  } else {
    a = load(static_cast<const float*>(from));
    b = load(static_cast<const float*>(from) + kLanes);
  }
}

/// e^x to about one unit in the last place, 0 below e^-87; exactly 1 at 0 (Cephes expf).
GRAFT_LANES Lanes exponential(Lanes x) {
  const Lanes low = all(-87.0F), high = all(88.0F), shift = all(12582912.0F);
  Lanes y = x > high ? high : x;
  y = y < low ? low : y;
  const Lanes whole = Level::fma(y, all(1.44269504F), shift);
  const Lanes n = whole - shift;
  Lanes r = Level::fma(n, all(-0.693359375F), y);
  r = Level::fma(n, all(2.12194440e-4F), r);
  Lanes p = all(1.9875691500e-4F);
  p = Level::fma(p, r, all(1.3981999507e-3F));
  p = Level::fma(p, r, all(8.3334519073e-3F));
  p = Level::fma(p, r, all(4.1665795894e-2F));
  p = Level::fma(p, r, all(1.6666665459e-1F));
  p = Level::fma(p, r, all(5.0000001201e-1F));
  p = Level::fma(p * r, r, r) + 1.0F;
  const LaneBits exponent =
      (reinterpret_cast<LaneBits>(whole) - reinterpret_cast<LaneBits>(shift) + 127U) << 23;
  const Lanes result = p * reinterpret_cast<Lanes>(exponent);
  return x < low ? all(0.0F) : result;
}

template <ElementType type>
void widen(const void* from, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    if constexpr (type == ElementType::f32) {
      out[i] = static_cast<const float*>(from)[i];
    } else if constexpr (type == ElementType::bf16) {
      const std::uint32_t bits =
          static_cast<std::uint32_t>(static_cast<const std::uint16_t*>(from)[i]) << 16;
      __builtin_memcpy(out + i, &bits, 4);
    } else {
      _Float16 half;
      __builtin_memcpy(&half, static_cast<const std::uint16_t*>(from) + i, 2);
      out[i] = static_cast<float>(half);
    }
  }
}

template <ElementType type>
void round_row(float* x, std::int64_t n) {
  if constexpr (type == ElementType::f32) return;
  for (std::int64_t i = 0; i < n; i += kLanes)
    store(x + i, rounded<type>(load(x + i, n - i)), n - i);
}

template <ElementType type>
void rms_norm(const float* x, const float* weight, std::int64_t n, float eps, float* out) {
  Lanes squares = all(0);
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const Lanes v = load(x + i, n - i);
    squares = Level::fma(v, v, squares);
  }
  const float scale = 1.0F / __builtin_sqrtf(Level::sum(squares) / static_cast<float>(n) + eps);
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const Lanes v = rounded<type>(load(x + i, n - i) * scale);
    store(out + i, rounded<type>(load(weight + i, n - i) * v), n - i);
  }
}

template <ElementType type>
void add(float* x, const float* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes)
    store(x + i, rounded<type>(load(x + i, n - i) + load(y + i, n - i)), n - i);
}

template <ElementType type>
void rotate(float* x, const float* cos, const float* sin, std::int64_t dim) {
  const std::int64_t half = dim / 2;
  for (std::int64_t i = 0; i < half; i += kLanes) {
    const std::int64_t left = half - i;
    const Lanes a = load(x + i, left), b = load(x + half + i, left);
    const Lanes first = rounded<type>(a * load(cos + i, left)) -
                        rounded<type>(b * load(sin + i, left));
    const Lanes second = rounded<type>(b * load(cos + half + i, left)) +
                         rounded<type>(a * load(sin + half + i, left));
    store(x + i, rounded<type>(first), left);
    store(x + half + i, rounded<type>(second), left);
  }
}

template <ElementType type>
void silu_times(float* gate, const float* up, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const Lanes g = load(gate + i, n - i);
    const Lanes act = rounded<type>(g / (exponential(-g) + 1.0F));
    store(gate + i, rounded<type>(act * load(up + i, n - i)), n - i);
  }
}

constexpr std::int64_t kSpan = 256;         // keys whose scores are in memory at once
constexpr float kUnseen = -3.4028235e38F;  // finite: its differences are numbers

/// Scores of the keys [begin, end), both multiples of kKeyBlock, to scores[r][key - begin].
template <ElementType type, int rows>
void score(const AttendArgs& args, std::int64_t begin, std::int64_t end, float (*scores)[kSpan]) {
  constexpr std::int64_t size = type == ElementType::f32 ? 4 : 2;
  const std::int64_t dim = args.cache.dim;
  const auto* keys = static_cast<const std::uint8_t*>(args.cache.keys) + begin * dim * size;
  const LaneInts index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (std::int64_t key = begin; key < end; key += kKeyBlock) {
    Lanes sums[rows][2];
    for (int r = 0; r < rows; ++r) sums[r][0] = sums[r][1] = all(0);
    for (std::int64_t d = 0; d < dim; ++d, keys += kKeyBlock * size) {
      Lanes a, b;
      load_pair<type>(keys, a, b);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        const Lanes q = all(args.q[r][d]);
        sums[r][0] = Level::fma(q, a, sums[r][0]);
        sums[r][1] = Level::fma(q, b, sums[r][1]);
      }
    }
    for (int r = 0; r < rows; ++r)
      for (int half = 0; half < 2; ++half) {
        const LaneInts at = index + static_cast<std::int32_t>(key + half * kLanes);
        const auto first = static_cast<std::int32_t>(args.first[r]);
        const auto last = static_cast<std::int32_t>(args.last[r]);
        const Lanes v = sums[r][half] * args.scale;
        store(scores[r] + key - begin + half * kLanes,
              ((at >= first) & (at < last)) ? v : all(kUnseen));
      }
  }
}

/// out[r] += weights[r][key - begin] * value of key, for the keys [begin, end).
template <ElementType type, int rows, int pairs>
void mix(const AttendArgs& args, std::int64_t begin, std::int64_t end, std::int64_t at,
         const float (*weights)[kSpan]) {
  constexpr std::int64_t size = type == ElementType::f32 ? 4 : 2;
  const std::int64_t stride = whole_pairs(args.cache.dim);
  const auto* values =
      static_cast<const std::uint8_t*>(args.cache.values) + (begin * stride + at) * size;
  Lanes sums[rows][2 * pairs];
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < 2 * pairs; ++i) sums[r][i] = load(args.out[r] + at + i * kLanes);
  for (std::int64_t key = 0; key < end - begin; ++key, values += stride * size) {
    Lanes v[2 * pairs];
#pragma GCC unroll 2
    for (int i = 0; i < pairs; ++i)
      load_pair<type>(values + 2 * i * kLanes * size, v[2 * i], v[2 * i + 1]);
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const Lanes weight = all(weights[r][key]);
#pragma GCC unroll 4
      for (int i = 0; i < 2 * pairs; ++i) sums[r][i] = Level::fma(weight, v[i], sums[r][i]);
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < 2 * pairs; ++i) store(args.out[r] + at + i * kLanes, sums[r][i]);
}

template <ElementType type, int rows>
void attend_rows(const AttendArgs& args) {
  const std::int64_t stride = whole_pairs(args.cache.dim);
  std::int64_t begin = args.first[0], end = args.last[0];
  float most[rows], total[rows];
  for (int r = 0; r < rows; ++r) {
    begin = args.first[r] < begin ? args.first[r] : begin;
    end = args.last[r] > end ? args.last[r] : end;
    most[r] = kUnseen;
    total[r] = 0;
    for (std::int64_t i = 0; i < stride; i += kLanes) store(args.out[r] + i, all(0));
  }
  alignas(64) float scores[rows][kSpan];
  for (std::int64_t span = begin / kSpan * kSpan; span < end; span += kSpan) {
    const std::int64_t from = begin > span ? begin / kKeyBlock * kKeyBlock : span;
    const std::int64_t until = end < span + kSpan ? end : span + kSpan;
    const std::int64_t blocks_end = (until + kKeyBlock - 1) / kKeyBlock * kKeyBlock;
    const std::int64_t count = blocks_end - from;
    score<type, rows>(args, from, blocks_end, scores);
    for (int r = 0; r < rows; ++r) {
      Lanes largest = all(most[r]);
      for (std::int64_t i = 0; i < count; i += kLanes) {
        const Lanes s = load(scores[r] + i);
        largest = s > largest ? s : largest;
      }
      float lanes[kLanes];
      store(lanes, largest);
      float now = lanes[0];
      for (int i = 1; i < kLanes; ++i) now = lanes[i] > now ? lanes[i] : now;
      store(lanes, exponential(all(most[r] - now)));
      const float kept = lanes[0];
      Lanes sum = all(0);
      for (std::int64_t i = 0; i < count; i += kLanes) {
        const Lanes weight = exponential(load(scores[r] + i) - now);
        store(scores[r] + i, weight);
        sum += weight;
      }
      total[r] = total[r] * kept + Level::sum(sum);
      most[r] = now;
      if (kept != 1)
        for (std::int64_t i = 0; i < stride; i += kLanes)
          store(args.out[r] + i, load(args.out[r] + i) * kept);
    }
    std::int64_t at = 0;
    for (; at + 4 * kLanes <= stride; at += 4 * kLanes)
      mix<type, rows, 2>(args, from, until, at, scores);
    if (at < stride) mix<type, rows, 1>(args, from, until, at, scores);
  }
  for (int r = 0; r < rows; ++r)
    for (std::int64_t i = 0; i < stride; i += kLanes)
      store(args.out[r] + i, rounded<type>(load(args.out[r] + i) / total[r]));
}

template <ElementType type>
void attend(const AttendArgs& args) {
  switch (args.rows) {
    case 1:
      return attend_rows<type, 1>(args);
    case 2:
      return attend_rows<type, 2>(args);
    case 3:
      return attend_rows<type, 3>(args);
    case 4:
      return attend_rows<type, 4>(args);
    default:
      return;
  }
}

template <ElementType type>
void arrange(const float* x, std::int64_t k, float* out) {
  const std::int64_t stride = whole_pairs(k);
  for (std::int64_t i = 0; i < stride; ++i) {
    const std::int64_t in = i % (2 * kLanes), base = i - in;
    const std::int64_t from =
        type == ElementType::bf16 ? base + in % kLanes * 2 + in / kLanes : i;
    out[i] = from < k ? x[from] : 0.0F;
  }
}

template <ElementType type, int rows>
void dense_rows(const DenseArgs& args) {
  constexpr std::int64_t size = type == ElementType::f32 ? 4 : 2, width = 2 * kLanes;
  constexpr std::int64_t ahead = 2048;  // bytes that are fetched in advance, as tiles do
  const std::int64_t stride = whole_pairs(args.k);
  const std::int64_t whole = args.k / width * width;
  const auto* weight = static_cast<const std::uint8_t*>(args.weight);
  for (std::int64_t n = 0; n < args.count; ++n, weight += args.k * size) {
    Lanes sums[rows][2];
    for (int r = 0; r < rows; ++r) sums[r][0] = sums[r][1] = all(0);
    const auto step = [&](const void* from, std::int64_t i) {
      Lanes a, b;
      load_pair<type>(from, a, b);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        const float* x = args.x + r * stride + i;
        sums[r][0] = Level::fma(a, load(x), sums[r][0]);
        sums[r][1] = Level::fma(b, load(x + kLanes), sums[r][1]);
      }
    };
    for (std::int64_t i = 0; i < whole; i += width) {
      __builtin_prefetch(weight + i * size + ahead);
      if constexpr (size == 4) __builtin_prefetch(weight + i * size + ahead + 64);
      step(weight + i * size, i);
    }
    if (whole < args.k) {
      std::uint8_t rest[width * size] = {};
      for (std::int64_t i = 0; i < (args.k - whole) * size; ++i) rest[i] = weight[whole * size + i];
      step(rest, whole);
    }
    for (int r = 0; r < rows; ++r)
      args.out[r * args.out_stride + n] = Level::sum(sums[r][0] + sums[r][1]);
  }
}

template <ElementType type>
void dense(const DenseArgs& args) {
  switch (args.m) {
    case 1:
      return dense_rows<type, 1>(args);
    case 2:
      return dense_rows<type, 2>(args);
    case 3:
      return dense_rows<type, 3>(args);
    case 4:
      return dense_rows<type, 4>(args);
    default:
      return;
  }
}

template <ElementType type>
constexpr RowOperations kOperations{
    &widen<type>,      &round_row<type>, &rms_norm<type>, &add<type>,   &rotate<type>,
    &silu_times<type>, &attend<type>,    &arrange<type>,  &dense<type>,
};

const RowOperations& operations_for(ElementType type) {
  switch (type) {
    case ElementType::bf16:
      return kOperations<ElementType::bf16>;
    case ElementType::f16:
      return kOperations<ElementType::f16>;
    case ElementType::f32:
      break;
  }
  return kOperations<ElementType::f32>;
}

#undef GRAFT_LANES

}  // namespace
}  // namespace graft::kernels
