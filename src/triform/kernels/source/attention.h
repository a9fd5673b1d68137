// Queries against the keys and values of their slot, a key-value head and its group of query heads at a time.
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

// Vector i of a head's width; V: how many there are, where they are whole and few, else 0.
template <int V, class T>
inline Floats part_of(const T* from, int i, int width) {
  return V ? load(from + i * LANES) : load_part(from, i * LANES, width);
}

// Scores of `count` keys: to[s] = query . key s.
template <int V, class T>
inline void score_keys(const float* query, const T* keys, int width, int count, float* to) {
  const int vectors = V ? V : (width + LANES - 1) / LANES;
  int s = 0;
  for (; s + 4 <= count; s += 4, keys += 4 * (size_t)width) {
    Floats a = splat(0), b = splat(0), c = splat(0), d = splat(0);
    UNROLL for (int i = 0; i < vectors; i++) {
      const Floats part = part_of<V>(query, i, width);
      a = multiply_add(part_of<V>(keys, i, width), part, a);
      b = multiply_add(part_of<V>(keys + width, i, width), part, b);
      c = multiply_add(part_of<V>(keys + 2 * width, i, width), part, c);
      d = multiply_add(part_of<V>(keys + 3 * width, i, width), part, d);
    }
    sums_of_four(a, b, c, d, to + s);
  }
  for (; s < count; s++, keys += width) {
    Floats a = splat(0), none = splat(0);
    UNROLL for (int i = 0; i < vectors; i++) a = multiply_add(part_of<V>(keys, i, width), part_of<V>(query, i, width), a);
    float four[4];
    sums_of_four(a, none, none, none, four);
    to[s] = four[0];
  }
}

// Scores to weights, not yet divided by their sum, which is returned. There is room for whole vectors.
inline float soften(float* scores, int count) {
  for (int i = count; i % LANES; i++) scores[i] = -3.4e38f;
  Floats most = load(scores), total = splat(0);
  for (int i = LANES; i < count; i += LANES) {
    const Floats next = load(scores + i);
    for (int p = 0; p < PARTS; p++) most.part[p] = next.part[p] > most.part[p] ? next.part[p] : most.part[p];
  }
  const Floats top = splat(highest(most));
  for (int i = 0; i < count; i += LANES) {
    const Floats weight = exponential(load(scores + i) - top);
    store(scores + i, weight);
    total = total + weight;
  }
  return sum(total);
}

// Adds the weighted values to `to`.
template <int V, class T>
inline void mix_values(const float* weights, const T* values, int width, int count, float* to) {
  constexpr int AT_ONCE = V ? V : 1;
  for (int at = 0; at < width; at += AT_ONCE * LANES) {
    Floats total[AT_ONCE];
    UNROLL for (int i = 0; i < AT_ONCE; i++) total[i] = part_of<V>(to + at, i, width - at);
    for (int s = 0; s < count; s++) {
      const Floats weight = splat(weights[s]);
      UNROLL for (int i = 0; i < AT_ONCE; i++)
        total[i] = multiply_add(part_of<V>(values + (size_t)s * width + at, i, width - at), weight, total[i]);
    }
    UNROLL for (int i = 0; i < AT_ONCE; i++) store_outputs(to + at, total[i], i * LANES, width - at);
  }
}

constexpr int MOST_TOGETHER = 8;  // rows of a slot that share what they read of it
constexpr int AT_A_TIME = 128;    // keys, few enough to stay in the first caches

// A row's query heads of one key-value head (turned and scaled), where what they mix goes, and the keys [first, last) that they see.
struct Seeing {
  const float* queries;
  float* to;
  int64_t place;
  int first, last;
};

// Rows of one slot; scores has `room` numbers for each query head and one vector more. What a row gets does not depend on the others.
template <int V, class T>
inline void attend_rows(const Attention& a, int kv_head, const Seeing* seeing, int rows, const T* keys, const T* values, float* scores,
                        size_t room) {
  const int width = a.head_width, group = a.heads / a.kv_heads;
  const size_t stride = room + LANES;
  int begin = seeing[0].first, end = seeing[0].last;
  for (int r = 1; r < rows; r++) {
    begin = seeing[r].first < begin ? seeing[r].first : begin;
    end = seeing[r].last > end ? seeing[r].last : end;
  }
  const auto in_turn = [&](const auto& f) {
    for (int at = begin; at < end; at += AT_A_TIME)
      for (int r = 0; r < rows; r++) {
        const int low = seeing[r].first > at ? seeing[r].first : at, high = seeing[r].last < at + AT_A_TIME ? seeing[r].last : at + AT_A_TIME;
        if (low >= high) continue;
        for (int g = 0; g < group; g++) f(r, g, scores + (r * group + g) * stride + (low - seeing[r].first), low, high - low);
      }
  };
  in_turn([&](int r, int g, float* to, int low, int count) {
    score_keys<V>(seeing[r].queries + (size_t)g * width, keys + (size_t)low * width, width, count, to);
  });
  for (int r = 0; r < rows; r++) {
    const int count = seeing[r].last - seeing[r].first;
    memset(seeing[r].to, 0, (size_t)group * width * 4);
    for (int g = 0; g < group && count > 0; g++) {
      float* mine = scores + (r * group + g) * stride;
      const float* bias = a.bias + (int64_t)(kv_head * group + g) * a.distances;
      for (int s = 0; a.bias && s < count; s++) {
        const int64_t back = seeing[r].place - seeing[r].first - s;
        mine[s] += bias[back < a.distances ? back : a.distances - 1];
      }
      mine[room] = soften(mine, count);
    }
  }
  in_turn([&](int r, int g, const float* weights, int low, int count) {
    mix_values<V>(weights, values + (size_t)low * width, width, count, seeing[r].to + (size_t)g * width);
  });
  for (int r = 0; r < rows; r++)
    for (int g = 0; g < group && seeing[r].first < seeing[r].last; g++)
      scale(seeing[r].to + (size_t)g * width, 1 / scores[(r * group + g) * stride + room], width);
}

template <class T>
inline void attend(const Attention& a, int kv_head, const Seeing* seeing, int rows, const T* keys, const T* values, float* scores,
                   size_t room) {
  switch (a.head_width) {
    case 2 * LANES: return attend_rows<2>(a, kv_head, seeing, rows, keys, values, scores, room);
    case 4 * LANES: return attend_rows<4>(a, kv_head, seeing, rows, keys, values, scores, room);
    case 6 * LANES: return attend_rows<6>(a, kv_head, seeing, rows, keys, values, scores, room);
    case 8 * LANES: return attend_rows<8>(a, kv_head, seeing, rows, keys, values, scores, room);
    default: return attend_rows<0>(a, kv_head, seeing, rows, keys, values, scores, room);
  }
}

}  // namespace
