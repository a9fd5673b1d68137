// One query row against the keys and values of its slot, a key-value head and its group of query heads at a time.
#pragma once

#include "rows.h"

namespace {

inline void copy_to(float* to, const float* from, int count) { memcpy(to, from, (size_t)count * 4); }

inline void copy_to(uint16_t* to, const float* from, int count) {
  for (int i = 0; i < count; i += LANES) {
    uint16_t all[LANES];
    store(all, load_outputs(from, i, count));
    memcpy(to + i, all, (size_t)(count - i < LANES ? count - i : LANES) * 2);
  }
}

inline Floats load_part(const float* from, int at, int count) { return load_outputs(from, at, count); }

inline Floats load_part(const uint16_t* from, int at, int count) {
  if (at + LANES <= count) return load(from + at);
  uint16_t all[LANES] = {};
  memcpy(all, from + at, (size_t)(count - at) * 2);
  return load(all);
}

// Norm and rotation of one head, in place (Su et al. 2021; the pairs are i and i + half).
inline void turn(const Attention& a, const Norm& norm, float* head, int64_t place) {
  normalize(norm, head, a.head_width, head);
  if (!a.cosines) return;
  const int half = a.head_width / 2;
  const float *cosines = a.cosines + place * half, *sines = a.sines + place * half;
  for (int i = 0; i < half; i += LANES) {
    const Floats c = load_outputs(cosines, i, half), s = load_outputs(sines, i, half);
    const Floats x = load_outputs(head, i, half), y = load_outputs(head + half, i, half);
    store_outputs(head, x * c - y * s, i, half);
    store_outputs(head + half, y * c + x * s, i, half);
  }
}

// Scores of `count` keys: to[s] = query . key s; query is padded with zeros to whole vectors.
template <class T>
inline void score_keys(const float* query, const T* keys, int width, int count, float* to) {
  int s = 0;
  for (; s + 4 <= count; s += 4) {
    Floats total[4] = {splat(0), splat(0), splat(0), splat(0)};
    for (int i = 0; i < width; i += LANES) {
      const Floats part = load(query + i);
      for (int k = 0; k < 4; k++) total[k] = multiply_add(load_part(keys + (size_t)(s + k) * width, i, width), part, total[k]);
    }
    sums_of_four(total[0], total[1], total[2], total[3], to + s);
  }
  for (; s < count; s++) {
    Floats total = splat(0), none = splat(0);
    for (int i = 0; i < width; i += LANES) total = multiply_add(load_part(keys + (size_t)s * width, i, width), load(query + i), total);
    float four[4];
    sums_of_four(total, none, none, none, four);
    to[s] = four[0];
  }
}

// Scores to weights, not yet divided by their sum, which is returned. There is room for whole vectors.
inline float soften(float* scores, int count) {
  for (int i = count; i % LANES; i++) scores[i] = -3.4e38f;
  Floats most = load(scores), total = splat(0);
  for (int i = LANES; i < count; i += LANES)
    for (int p = 0; p < PARTS; p++) {
      const Floats next = load(scores + i);
      most.part[p] = next.part[p] > most.part[p] ? next.part[p] : most.part[p];
    }
  const Floats top = splat(highest(most));
  for (int i = 0; i < count; i += LANES) {
    const Floats weight = exponential(load(scores + i) - top);
    store(scores + i, weight);
    total = total + weight;
  }
  return sum(total);
}

template <class T>
inline void mix_values(const float* weights, const T* values, int width, int count, float factor, float* to) {
  int at = 0;
  for (; at + 4 * LANES <= width; at += 4 * LANES) {
    Floats total[4] = {splat(0), splat(0), splat(0), splat(0)};
    for (int s = 0; s < count; s++) {
      const Floats weight = splat(weights[s]);
      for (int i = 0; i < 4; i++) total[i] = multiply_add(load(values + (size_t)s * width + at + i * LANES), weight, total[i]);
    }
    for (int i = 0; i < 4; i++) store(to + at + i * LANES, total[i] * splat(factor));
  }
  for (; at < width; at += LANES) {
    Floats total = splat(0);
    for (int s = 0; s < count; s++) total = multiply_add(load_part(values + (size_t)s * width, at, width), splat(weights[s]), total);
    store_outputs(to, total * splat(factor), at, width);
  }
}

constexpr int MOST_WIDTH = 1024;  // of a head

// The query heads of one key-value head: queries and `to` are (heads of the group, width); keys and values [first, last) of a slot.
template <class T>
inline void attend(const Attention& a, int kv_head, const float* queries, const T* keys, const T* values, int first, int last,
                   int64_t place, float* scores, float* to) {
  const int width = a.head_width, group = a.heads / a.kv_heads, count = last - first;
  if (count < 1) {
    memset(to, 0, (size_t)group * width * 4);
    return;
  }
  for (int g = 0; g < group; g++) {
    float query[MOST_WIDTH];
    for (int i = 0; i < width; i += LANES) store(query + i, load_outputs(queries + (size_t)g * width, i, width) * splat(a.scale));
    score_keys(query, keys + (size_t)first * width, width, count, scores);
    if (a.bias) {
      const float* bias = a.bias + (int64_t)(kv_head * group + g) * a.distances;
      for (int s = 0; s < count; s++) {
        const int64_t back = place - first - s;
        scores[s] += bias[back < a.distances ? back : a.distances - 1];
      }
    }
    const float total = soften(scores, count);
    mix_values(scores, values + (size_t)first * width, width, count, 1 / total, to + (size_t)g * width);
  }
}

}  // namespace
