#include <immintrin.h>

#include "kernels/activations.h"

namespace graft::kernels {
namespace {

/// Eight elements from x[i] on, as float32.
__m256 load8(const PrepareRow& args, std::int64_t i) {
  if (args.type == ElementType::f32) return _mm256_loadu_ps(static_cast<const float*>(args.x) + i);
  const __m128i half = _mm_loadu_si128(
      reinterpret_cast<const __m128i*>(static_cast<const std::uint16_t*>(args.x) + i));
  if (args.type == ElementType::f16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

float load1(const PrepareRow& args, std::int64_t i) {
  if (args.type == ElementType::f32) return static_cast<const float*>(args.x)[i];
  const int half = static_cast<const std::uint16_t*>(args.x)[i];
  if (args.type == ElementType::f16) return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(half << 16)));
}

/// x in the order of the steps, zeros where a group's last step is not full.
void gather(const PrepareRow& args) {
  const std::int64_t k = args.shape->k, group = args.shape->group;
  float* out = args.scratch;
  for (std::int64_t begin = 0; begin < k; begin += group) {
    const std::int64_t end = begin + group < k ? begin + group : k;
    std::int64_t i = begin;
    if (!args.order) {
      for (; i + kStep <= end; i += kStep, out += kStep) _mm256_store_ps(out, load8(args, i));
    } else if (args.type == ElementType::f32) {
      for (; i + kStep <= end; i += kStep, out += kStep)
        _mm256_store_ps(
            out, _mm256_i32gather_ps(
                     static_cast<const float*>(args.x),
                     _mm256_loadu_si256(reinterpret_cast<const __m256i*>(args.order + i)), 4));
    }
    for (; i < end; ++i) *out++ = load1(args, args.order ? args.order[i] : i);
    while ((out - args.scratch) % kStep) *out++ = 0;
  }
}

std::int32_t sum8(__m256i v) {
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}

float sum8(__m256 v) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}

std::int32_t max8(__m256i v) {
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}

void quantize_block(const PrepareRow& args, std::int64_t step, std::int64_t steps,
                    std::int64_t block) {
  const bool two = args.act == Act::a15;
  const float limit = two ? 32639.0F : 127.0F;
  const float* x = args.scratch + step * kStep;
  const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
  __m256i most = _mm256_setzero_si256();
  for (std::int64_t s = 0; s < steps; ++s)
    most = _mm256_max_epi32(
        most, _mm256_and_si256(_mm256_castps_si256(_mm256_load_ps(x + s * kStep)), magnitude));
  const std::int32_t bits = max8(most);
  float scale = 0, inverse = 0;
  if (bits >= 0x7F800000) {
    scale = __builtin_nanf("");
  } else {
    const float absmax = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
    if (absmax >= 1e-30F) {
      scale = absmax / limit;
      inverse = limit / absmax;
    }
  }
  args.scales[block * args.rows] = scale * args.factor;
  __m256i high_sum = _mm256_setzero_si256(), low_sum = _mm256_setzero_si256();
  const __m256 factor = _mm256_set1_ps(inverse);
  const __m256i half = _mm256_set1_epi32(128);
  const std::int64_t stride = args.rows * (two ? 16 : 8);
  std::uint8_t* out = args.values + step * stride;
  for (std::int64_t s = 0; s < steps; ++s, out += stride) {
    __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(x + s * kStep), factor));
    // A scale of zero meets NaN and infinities too, which have no integer.
    if (inverse == 0) q = _mm256_setzero_si256();
    if (two) {
      const __m256i high = _mm256_srai_epi32(_mm256_add_epi32(q, half), 8);
      const __m256i low = _mm256_sub_epi32(q, _mm256_slli_epi32(high, 8));
      high_sum = _mm256_add_epi32(high_sum, high);
      low_sum = _mm256_add_epi32(low_sum, low);
      const __m256i words = _mm256_packs_epi32(high, low);
      const __m256i bytes = _mm256_packs_epi16(words, words);
      _mm_storeu_si128(
          reinterpret_cast<__m128i*>(out),
          _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
    } else {
      high_sum = _mm256_add_epi32(high_sum, q);
      const __m256i words = _mm256_packs_epi32(q, q);
      const __m256i bytes = _mm256_packs_epi16(words, words);
      _mm_storel_epi64(
          reinterpret_cast<__m128i*>(out),
          _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
    }
  }
  args.sums[2 * block * args.rows] = -sum8(high_sum);
  args.sums[2 * block * args.rows + 1] = -sum8(low_sum);
}

/// To the nearest bfloat16, ties to even, still in 32 bits; NaN stays NaN.
__m256i round_to_bf16(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  return _mm256_and_si256(_mm256_blendv_epi8(rounded, quiet, nan),
                          _mm256_set1_epi32(static_cast<int>(0xFFFF0000U)));
}

void lay_out_floats(const PrepareRow& args, std::int64_t step, std::int64_t steps,
                    std::int64_t block) {
  const bool narrow = args.act == Act::bf16, plain = args.shape->kind == PanelKind::int8;
  const __m256i order = plain    ? _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)
                        : narrow ? _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7)
                                 : _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  __m256 lanes = _mm256_setzero_ps();
  for (std::int64_t s = step; s < step + steps; ++s) {
    __m256 v = _mm256_permutevar8x32_ps(_mm256_load_ps(args.scratch + s * kStep), order);
    if (narrow) {
      const __m256i rounded = round_to_bf16(v);
      v = _mm256_castsi256_ps(rounded);
      const __m256i upper = _mm256_srli_epi32(rounded, 16);
      const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0x88);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(args.values + s * args.rows * 16),
                       _mm256_castsi256_si128(words));
    } else {
      _mm256_storeu_ps(reinterpret_cast<float*>(args.values + s * args.rows * 32), v);
    }
    lanes = _mm256_add_ps(lanes, v);
  }
  args.float_sums[block * args.rows] = sum8(lanes);
}

}  // namespace

void prepare_row_avx2(const PrepareRow& args) {
  gather(args);
  const std::int64_t groups = args.shape->groups;
  const bool integer = args.act == Act::a15 || args.act == Act::a8;
  std::int64_t step = 0, block = 0;
  for (std::int64_t g = 0; g < groups; ++g) {
    std::int64_t left =
        g + 1 < groups ? args.shape->steps_of_group : args.shape->steps_of_last_group;
    for (; left > 0; left -= kBlockSteps, ++block) {
      const std::int64_t steps = left < kBlockSteps ? left : kBlockSteps;
      if (integer)
        quantize_block(args, step, steps, block);
      else
        lay_out_floats(args, step, steps, block);
      step += steps;
    }
  }
}

}  // namespace graft::kernels
