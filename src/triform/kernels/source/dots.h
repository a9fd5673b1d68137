// Products of 16 rows of weights with 2 or 4 numbers of the input: the one place where processors differ.
//
// Weights of 8 bits are stored as unsigned numbers, 128 more than they are; those of 4 bits 8 more. What is too much is taken off
// at the start of a block of 32: `OFFSET` times the sum of its inputs.
#pragma once

#include "simd.h"

namespace {

#if defined(__AVX512VNNI__) && defined(__AVX512F__)

constexpr int OFFSET_Q8 = 128, OFFSET_Q4 = 8;
struct Ints { __m512i part; };
struct Bytes { __m512i part; };

inline Ints start(int32_t value) { return {_mm512_set1_epi32(value)}; }
inline Ints together(const Ints& a, const Ints& b) { return {_mm512_add_epi32(a.part, b.part)}; }
inline Bytes load_q8(const uint8_t* from) { return {_mm512_loadu_si512(from)}; }
inline void load_q4(const uint8_t* from, Bytes& low, Bytes& high) {
  const __m512i both = _mm512_loadu_si512(from), mask = _mm512_set1_epi8(15);
  low.part = _mm512_and_si512(both, mask);
  high.part = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
}
inline void dot(Ints& total, const Bytes& weights, int32_t four) {
  total.part = _mm512_dpbusd_epi32(total.part, weights.part, _mm512_set1_epi32(four));
}
inline Floats to_floats(const Ints& value) { return {{_mm512_cvtepi32_ps(value.part)}}; }

#elif defined(__AVX2__)

constexpr int OFFSET_Q8 = 0, OFFSET_Q4 = 8;
struct Ints { __m256i part[2]; };
struct Bytes { __m256i part[2]; };

inline Ints start(int32_t value) { return {{_mm256_set1_epi32(value), _mm256_set1_epi32(value)}}; }
inline Ints together(const Ints& a, const Ints& b) {
  return {{_mm256_add_epi32(a.part[0], b.part[0]), _mm256_add_epi32(a.part[1], b.part[1])}};
}
inline Bytes load_q8(const uint8_t* from) {
  const __m256i offset = _mm256_set1_epi8((char)0x80);
  return {{_mm256_xor_si256(_mm256_loadu_si256((const __m256i*)from), offset),
           _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)(from + 32)), offset)}};
}
inline void load_q4(const uint8_t* from, Bytes& low, Bytes& high) {
  const __m256i mask = _mm256_set1_epi8(15);
  for (int i = 0; i < 2; i++) {
    const __m256i both = _mm256_loadu_si256((const __m256i*)(from + 32 * i));
    low.part[i] = _mm256_and_si256(both, mask);
    high.part[i] = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
  }
}
inline void dot(Ints& total, const Bytes& weights, int32_t four) {
  const __m256i input = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
  for (int i = 0; i < 2; i++) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights.part[i]), _mm256_sign_epi8(input, weights.part[i]));
    total.part[i] = _mm256_add_epi32(total.part[i], _mm256_madd_epi16(pairs, ones));
  }
}
inline Floats to_floats(const Ints& value) { return {{_mm256_cvtepi32_ps(value.part[0]), _mm256_cvtepi32_ps(value.part[1])}}; }

#elif defined(__aarch64__)

constexpr int OFFSET_Q8 = 0, OFFSET_Q4 = 8;
struct Ints { int32x4_t part[4]; };
struct Bytes { int8x16_t part[4]; };

inline Ints start(int32_t value) {
  const int32x4_t all = vdupq_n_s32(value);
  return {{all, all, all, all}};
}
inline Ints together(const Ints& a, const Ints& b) {
  Ints out;
  for (int i = 0; i < 4; i++) out.part[i] = vaddq_s32(a.part[i], b.part[i]);
  return out;
}
inline Bytes load_q8(const uint8_t* from) {
  Bytes out;
  for (int i = 0; i < 4; i++) out.part[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(from + 16 * i), vdupq_n_u8(0x80)));
  return out;
}
inline void load_q4(const uint8_t* from, Bytes& low, Bytes& high) {
  for (int i = 0; i < 4; i++) {
    const uint8x16_t both = vld1q_u8(from + 16 * i);
    low.part[i] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
    high.part[i] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
  }
}
inline void dot(Ints& total, const Bytes& weights, int32_t four) {
  const int8x16_t input = vreinterpretq_s8_s32(vdupq_n_s32(four));
  for (int i = 0; i < 4; i++) {
#if defined(__ARM_FEATURE_DOTPROD)
    total.part[i] = vdotq_s32(total.part[i], weights.part[i], input);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(weights.part[i]), vget_low_s8(input));
    const int16x8_t high = vmull_s8(vget_high_s8(weights.part[i]), vget_high_s8(input));
    total.part[i] = vaddq_s32(total.part[i], vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
  }
}
inline Floats to_floats(const Ints& value) {
  Floats out;
  for (int i = 0; i < 4; i++) out.part[i] = vcvtq_f32_s32(value.part[i]);
  return out;
}

#else

constexpr int OFFSET_Q8 = 128, OFFSET_Q4 = 8;
struct Ints { int32_t lane[LANES]; };
struct Bytes { uint8_t lane[4 * LANES]; };

inline Ints start(int32_t value) {
  Ints out;
  for (int i = 0; i < LANES; i++) out.lane[i] = value;
  return out;
}
inline Ints together(const Ints& a, const Ints& b) {
  Ints out;
  for (int i = 0; i < LANES; i++) out.lane[i] = a.lane[i] + b.lane[i];
  return out;
}
inline Bytes load_q8(const uint8_t* from) {
  Bytes out;
  memcpy(out.lane, from, sizeof out.lane);
  return out;
}
inline void load_q4(const uint8_t* from, Bytes& low, Bytes& high) {
  for (int i = 0; i < 4 * LANES; i++) low.lane[i] = from[i] & 15, high.lane[i] = from[i] >> 4;
}
inline void dot(Ints& total, const Bytes& weights, int32_t four) {
  int8_t input[4];
  memcpy(input, &four, 4);
  for (int i = 0; i < LANES; i++)
    for (int k = 0; k < 4; k++) total.lane[i] += (int32_t)weights.lane[4 * i + k] * input[k];
}
inline Floats to_floats(const Ints& value) {
  float all[LANES];
  for (int i = 0; i < LANES; i++) all[i] = (float)value.lane[i];
  return load(all);
}

#endif

// 16 rows of two bf16 weights with two bf16 inputs.
inline void dot_pair(Floats& total, const uint16_t* weights, uint32_t two) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  total.part[0] = _mm512_dpbf16_ps(total.part[0], (__m512bh)_mm512_loadu_si512(weights), (__m512bh)_mm512_set1_epi32((int32_t)two));
#else
  const uint32_t bits[2] = {two << 16, two & 0xffff0000u};
  float input[2];
  memcpy(input, bits, sizeof input);
  Floats even, odd;
  for (int i = 0; i < PARTS; i++) {
    NativeWord both;
    memcpy(&both, weights + 2 * NATIVE * i, sizeof both);
    even.part[i] = (NativeFloat)(both << 16);
    odd.part[i] = (NativeFloat)(both & 0xffff0000u);
  }
  total = multiply_add(odd, splat(input[1]), multiply_add(even, splat(input[0]), total));
#endif
}

}  // namespace
