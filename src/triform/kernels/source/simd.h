// Sixteen numbers at once, on whatever registers the variant being compiled has.
//
// Everything is in an unnamed namespace: objects compiled for different processors are linked together, and a shared
// inline function would be taken from any one of them.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

constexpr int LANES = 16;
#if defined(__AVX512F__)
constexpr int NATIVE = 16;
#elif defined(__AVX2__)
constexpr int NATIVE = 8;
#else
constexpr int NATIVE = 4;
#endif
constexpr int PARTS = LANES / NATIVE;

typedef float NativeFloat __attribute__((vector_size(NATIVE * 4)));
typedef int32_t NativeInt __attribute__((vector_size(NATIVE * 4)));
typedef uint32_t NativeWord __attribute__((vector_size(NATIVE * 4)));
typedef uint16_t NativeHalf __attribute__((vector_size(NATIVE * 2)));

struct Floats {
  NativeFloat part[PARTS];
};

inline Floats splat(float value) {
  Floats out;
  for (int i = 0; i < PARTS; i++) out.part[i] = value - NativeFloat{};
  return out;
}

inline Floats load(const float* from) {  // part by part: GCC takes a copy of the whole through memory
  Floats out;
  for (int i = 0; i < PARTS; i++) memcpy(&out.part[i], from + i * NATIVE, sizeof out.part[i]);
  return out;
}

inline void store(float* to, const Floats& value) {
  for (int i = 0; i < PARTS; i++) memcpy(to + i * NATIVE, &value.part[i], sizeof value.part[i]);
}

inline Floats load_some(const float* from, int count) {
  float all[LANES] = {};
  memcpy(all, from, (size_t)count * sizeof(float));
  return load(all);
}

inline void store_some(float* to, const Floats& value, int count) {
  float all[LANES];
  store(all, value);
  memcpy(to, all, (size_t)count * sizeof(float));
}

// Before a loop whose rounds the compiler is to write out, so that what it sums stays in registers.
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define ELEMENTWISE(name, symbol)                                              \
  inline Floats operator symbol(const Floats& a, const Floats& b) {            \
    Floats out;                                                                \
    for (int i = 0; i < PARTS; i++) out.part[i] = a.part[i] symbol b.part[i];  \
    return out;                                                                \
  }
ELEMENTWISE(add, +)
ELEMENTWISE(subtract, -)
ELEMENTWISE(multiply, *)
ELEMENTWISE(divide, /)
#undef ELEMENTWISE

// a * b + c, rounded once wherever the processor can: the same in every loop, so that a row's result does not depend on how many
// rows there are.
inline Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
  Floats out;
  for (int i = 0; i < PARTS; i++) {
#if defined(__AVX512F__)
    out.part[i] = _mm512_fmadd_ps(a.part[i], b.part[i], c.part[i]);
#elif defined(__AVX2__)
    out.part[i] = _mm256_fmadd_ps(a.part[i], b.part[i], c.part[i]);
#elif defined(__aarch64__)
    out.part[i] = vfmaq_f32(c.part[i], a.part[i], b.part[i]);
#else
    out.part[i] = a.part[i] * b.part[i] + c.part[i];
#endif
  }
  return out;
}

// NaN in a stays, so that damaged weights show in the scores.
inline Floats at_least(const Floats& a, float low) {
  Floats out;
  for (int i = 0; i < PARTS; i++) out.part[i] = a.part[i] < low ? low - NativeFloat{} : a.part[i];
  return out;
}

inline Floats at_most(const Floats& a, float high) {
  Floats out;
  for (int i = 0; i < PARTS; i++) out.part[i] = a.part[i] > high ? high - NativeFloat{} : a.part[i];
  return out;
}

inline Floats absolute(const Floats& a) {
  Floats out;
  for (int i = 0; i < PARTS; i++) out.part[i] = (NativeFloat)((NativeWord)a.part[i] & 0x7fffffffu);
  return out;
}

inline Floats with_sign_of(const Floats& a, const Floats& sign) {
  Floats out;
  for (int i = 0; i < PARTS; i++)
    out.part[i] = (NativeFloat)(((NativeWord)a.part[i] & 0x7fffffffu) | ((NativeWord)sign.part[i] & 0x80000000u));
  return out;
}

inline float sum(const Floats& a) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(a.part[0]);
#else
  NativeFloat total = a.part[0];
  for (int i = 1; i < PARTS; i++) total += a.part[i];
  float out = 0;
  for (int i = 0; i < NATIVE; i++) out += total[i];
  return out;
#endif
}

inline float highest(const Floats& a) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(a.part[0]);
#else
  float out = a.part[0][0];
  for (int i = 0; i < PARTS; i++)
    for (int k = 0; k < NATIVE; k++) out = a.part[i][k] > out ? a.part[i][k] : out;
  return out;
#endif
}

// The sums of four vectors, in order: four reductions for little more than the price of one.
inline void sums_of_four(const Floats& a, const Floats& b, const Floats& c, const Floats& d, float* to) {
#if defined(__AVX512F__)
  __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.part[0], b.part[0]), _mm512_unpackhi_ps(a.part[0], b.part[0]));
  __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.part[0], d.part[0]), _mm512_unpackhi_ps(c.part[0], d.part[0]));
  __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#else
  to[0] = sum(a), to[1] = sum(b), to[2] = sum(c), to[3] = sum(d);
#endif
}

// Shorter formats

inline Floats load(const uint16_t* from) {  // bf16
  Floats out;
  for (int i = 0; i < PARTS; i++) {
    NativeHalf half;
    memcpy(&half, from + i * NATIVE, sizeof half);
    out.part[i] = (NativeFloat)(__builtin_convertvector(half, NativeWord) << 16);
  }
  return out;
}

inline void store(uint16_t* to, const Floats& value) {  // bf16, rounded to the nearest, ties to even
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  const __m256bh halves = _mm512_cvtneps_pbh(value.part[0]);
  memcpy(to, &halves, sizeof halves);
  return;
#endif
  for (int i = 0; i < PARTS; i++) {
    NativeWord bits = (NativeWord)value.part[i];
    NativeWord rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    NativeInt is_nan = value.part[i] != value.part[i];
    rounded = ((NativeWord)is_nan & 0x7fc0u) | (~(NativeWord)is_nan & rounded);
    NativeHalf half = __builtin_convertvector(rounded, NativeHalf);
    memcpy(to + i * NATIVE, &half, sizeof half);
  }
}

inline float half_to_float(uint16_t half) {
#if defined(__F16C__)
  return _cvtsh_ss(half);
#else
  uint32_t sign = (uint32_t)(half & 0x8000u) << 16, rest = half & 0x7fffu, bits;
  if (rest >= 0x7c00u) {
    bits = sign | 0x7f800000u | (rest & 0x3ffu) << 13;
  } else if (rest >= 0x400u) {
    bits = sign | ((rest << 13) + 0x38000000u);
  } else {
    float small = (float)rest * 5.9604644775390625e-8f;
    memcpy(&bits, &small, sizeof bits);
    bits |= sign;
  }
  float out;
  memcpy(&out, &bits, sizeof out);
  return out;
#endif
}

inline Floats load_halves(const uint16_t* from) {  // fp16
  Floats out;
#if defined(__AVX512F__)
  out.part[0] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  for (int i = 0; i < PARTS; i++) out.part[i] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i * NATIVE)));
#elif defined(__aarch64__)
  for (int i = 0; i < PARTS; i++) out.part[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + i * NATIVE)));
#else
  float all[LANES];
  for (int i = 0; i < LANES; i++) all[i] = half_to_float(from[i]);
  out = load(all);
#endif
  return out;
}

// Functions

// e to the x, to 2 units in the last place; x is cut to what fp32 can hold.
inline Floats exponential(const Floats& value) {
  const Floats magic = splat(12582912.0f);  // added, it leaves the nearest whole number in the lowest bits
  Floats x = at_most(at_least(value, -87.3f), 88.3f);
  Floats shifted = multiply_add(x, splat(1.44269504089f), magic), whole = shifted - magic;
  Floats r = multiply_add(whole, splat(2.12194440e-4f), multiply_add(whole, splat(-0.693359375f), x));
  Floats p = multiply_add(splat(1.9875691500e-4f), r, splat(1.3981999507e-3f));
  p = multiply_add(p, r, splat(8.3334519073e-3f));
  p = multiply_add(p, r, splat(4.1665795894e-2f));
  p = multiply_add(p, r, splat(1.6666665459e-1f));
  p = multiply_add(p, r, splat(5.0000001201e-1f));
  p = multiply_add(p, r * r, r + splat(1));
  for (int i = 0; i < PARTS; i++) p.part[i] = (NativeFloat)((NativeWord)p.part[i] + ((NativeWord)shifted.part[i] << 23));
  return p;
}

inline Floats logistic(const Floats& x) {
  return splat(1) / (splat(1) + exponential(splat(0) - x));
}

inline Floats hyperbolic_tangent(const Floats& x) {
  Floats e = exponential(splat(-2) * absolute(x));
  Floats far = (splat(1) - e) / (splat(1) + e);
  // near zero the difference above loses digits: x - x^3/3 + 2 x^5/15 - 17 x^7/315
  Floats s = x * x, near = x * multiply_add(s, multiply_add(s, multiply_add(s, splat(-17.0f / 315), splat(2.0f / 15)), splat(-1.0f / 3)), splat(1));
  Floats out = with_sign_of(far, x);
  for (int i = 0; i < PARTS; i++) out.part[i] = s.part[i] < 0.015625f ? near.part[i] : out.part[i];
  return out;
}

// The error function to 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26).
inline Floats error_function(const Floats& x) {
  Floats z = absolute(x), t = splat(1) / multiply_add(splat(0.3275911f), z, splat(1));
  Floats p = multiply_add(splat(1.061405429f), t, splat(-1.453152027f));
  p = multiply_add(p, t, splat(1.421413741f));
  p = multiply_add(p, t, splat(-0.284496736f));
  p = multiply_add(p, t, splat(0.254829592f));
  return with_sign_of(splat(1) - p * t * exponential(splat(0) - z * z), x);
}

}  // namespace
