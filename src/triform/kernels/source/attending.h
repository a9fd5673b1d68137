// Attention in training: for a block of queries all their scores at once, so that neither scores nor probabilities leave the caches.
// The backward pass makes them again. Keys and values are packed once for all query heads that share them.
#pragma once

#include "blocks.h"
#include "training.h"

namespace {

constexpr int QUERIES = 64;  // of a block

// Memory of one thread.
template <class T>
struct Desk {
  T *keys, *values, *key_rows;                     // packed: keys and values by columns or rows
  T *query_rows, *gradient_rows;                   // of a block, packed
  float *scores, *by_scores;                       // (QUERIES, columns)
  T *shares, *slopes, *share_pairs, *slope_pairs;  // the same in T, by rows and by pairs of rows
  float *by_keys, *by_values;                      // (keys, padded width)
  size_t bytes;

  Desk(const Attending& a, char* room) : bytes(0) {
    const size_t keys_up = round_up(a.keys, LANES), width_up = round_up(a.width, LANES), depth = round_up(a.keys, PAIR<T>);
    const size_t block = QUERIES * keys_up, back = a.gradient ? 1 : 0, narrow = sizeof(T) < 4;
    take(keys, room, keys_up * round_up(a.width, PAIR<T>));
    take(values, room, back ? keys_up * round_up(a.width, PAIR<T>) : width_up * depth);
    take(scores, room, block);
    take(shares, room, narrow * block);
    take(key_rows, room, back * width_up * depth);
    take(query_rows, room, back * width_up * QUERIES);
    take(gradient_rows, room, back * width_up * QUERIES);
    take(by_scores, room, back * block);
    take(slopes, room, back * narrow * block);
    take(share_pairs, room, back * narrow * block);
    take(slope_pairs, room, back * narrow * block);
    take(by_keys, room, back * a.keys * width_up);
    take(by_values, room, back * a.keys * width_up);
  }

 private:
  template <class N>
  void take(N*& part, char* room, size_t count) {
    part = (N*)(room + bytes);
    bytes += (count * sizeof(N) + 63) / 64 * 64;
  }
};

template <class T>
class Attender {
 public:
  Attender(const Attending& a, Team team)
      : a(a), team(team), desk(a, (char*)a.room + a.room_bytes * team.thread), pitch(round_up(a.keys, LANES)),
        wide(round_up(a.width, LANES)), panels((a.width + LANES - 1) / LANES) {}

  void run() {
    // A thread that adds up what is learned of a head's mask has the head for itself.
    const bool together = a.by_mask && a.mask_strides[0] == 0;
    const int tasks = together ? a.groups : a.groups * a.batch;
    for (int task = team.thread; task < tasks; task += team.threads) {
      if (!together) group(task / a.groups, task % a.groups);
      for (int b = 0; together && b < a.batch; b++) group(b, task);
    }
  }

 private:
  const Attending& a;
  Team team;
  Desk<T> desk;
  int pitch, wide, panels;
  bool empty[QUERIES];

  template <class N, class V>
  static N* at(V* data, const int64_t* strides, int64_t b, int64_t head, int64_t token) {
    return (N*)data + b * strides[0] + head * strides[1] + token * strides[2];
  }

  void group(int b, int g) {
    const T* keys = at<const T>(a.key, a.key_strides, b, g, 0);
    const T* values = at<const T>(a.value, a.value_strides, b, g, 0);
    pack_columns(keys, a.key_strides[2], a.width, a.keys, desk.keys);
    if (a.gradient) {
      pack_columns(values, a.value_strides[2], a.width, a.keys, desk.values);
      pack_rows(keys, a.key_strides[2], a.keys, a.width, desk.key_rows);
      memset(desk.by_keys, 0, sizeof(float) * a.keys * wide);
      memset(desk.by_values, 0, sizeof(float) * a.keys * wide);
    } else {
      pack_rows(values, a.value_strides[2], a.keys, a.width, desk.values);
    }
    const int each = a.heads / a.groups;
    for (int head = g * each; head < (g + 1) * each; head++)
      for (int first = 0; first < a.queries; first += QUERIES) {
        const int rows = a.queries - first < QUERIES ? a.queries - first : QUERIES;
        const int seen = a.causal && first + rows < a.keys ? first + rows : a.keys;
        a.gradient ? back(b, head, first, rows, seen) : forward(b, head, first, rows, seen);
      }
    if (!a.gradient) return;
    for (int s = 0; s < a.keys; s++) {
      T* key = at<T>(a.by_key, a.key_strides, b, g, s);
      T* value = at<T>(a.by_value, a.value_strides, b, g, s);
      for (int i = 0; i < a.width; i += LANES) {
        store_part(key, load(desk.by_keys + (size_t)s * wide + i), i, a.width);
        store_part(value, load(desk.by_values + (size_t)s * wide + i), i, a.width);
      }
    }
  }

  size_t panel() const { return panel_size<T>(a.width); }

  // Scores of a block of queries, to e^(score - the row's largest); sums of rows.
  void shares(int b, int head, int first, int rows, int seen, float* sums) {
    const T* query = at<const T>(a.query, a.query_strides, b, head, first);
    const Floats scale = splat(a.scale);
    product(Left<T>{query, (size_t)a.query_strides[2], PAIR<T>}, rows, Right<T>{desk.keys, panel()}, (seen + LANES - 1) / LANES,
            round_up(a.width, PAIR<T>) / PAIR<T>,
            [&](int r, int column, const Floats& value) { store(desk.scores + (size_t)r * pitch + column, value * scale); });
    for (int r = 0; r < rows; r++) {
      float* row = desk.scores + (size_t)r * pitch;
      const int count = a.causal && first + r + 1 < seen ? first + r + 1 : seen;
      const int64_t place = b * a.mask_strides[0] + head * a.mask_strides[1] + (first + r) * a.mask_strides[2];
      if (a.mask_kind == SCORES)
        for (int i = 0; i < count; i += LANES) store(row + i, load(row + i) + load_part((const T*)a.mask + place, i, a.keys));
      if (a.mask_kind == SEEN)
        for (int i = 0; i < count; i++) row[i] = ((const uint8_t*)a.mask)[place + i] ? row[i] : -INFINITY;
      Floats most = splat(-INFINITY), total = splat(0);
      const int whole = count / LANES * LANES, up = round_up(seen, LANES);
      for (int i = count; i < up; i++) row[i] = -INFINITY;
      for (int i = 0; i < up; i += LANES) most = larger(load(row + i), most);
      const float top = highest(most);
      empty[r] = top == -INFINITY;
      if (empty[r]) {
        memset(row, 0, sizeof(float) * up);
        sums[r] = 1;
        continue;
      }
      for (int i = 0; i < up; i += LANES) {
        Floats value = exponential(load(row + i) - splat(top));
        if (i >= whole) value = cut(value, count - i < 0 ? 0 : count - i);
        store(row + i, value);
        total = total + value;
      }
      sums[r] = sum(total);
    }
  }

  void forward(int b, int head, int first, int rows, int seen) {
    float sums[QUERIES];
    shares(b, head, first, rows, seen, sums);
    const int up = round_up(seen, LANES);
    const T* left = narrow_rows(desk.scores, desk.shares, rows, up);
    T* out = at<T>(a.out, a.out_strides, b, head, first);
    product(Left<T>{left, (size_t)pitch, PAIR<T>}, rows, Right<T>{desk.values, panel_size<T>(a.keys)}, panels,
            (seen + PAIR<T> - 1) / PAIR<T>,
            [&](int r, int column, const Floats& value) { store_part(out + r * a.out_strides[2], value * splat(1 / sums[r]), column, a.width); });
  }

  void back(int b, int head, int first, int rows, int seen) {
    float sums[QUERIES];
    const int up = round_up(seen, LANES), pairs = (rows + PAIR<T> - 1) / PAIR<T>;
    const T* query = at<const T>(a.query, a.query_strides, b, head, first);
    const T* gradient = at<const T>(a.gradient, a.out_strides, b, head, first);
    shares(b, head, first, rows, seen, sums);
    product(Left<T>{gradient, (size_t)a.out_strides[2], PAIR<T>}, rows, Right<T>{desk.values, panel()}, up / LANES,
            round_up(a.width, PAIR<T>) / PAIR<T>,
            [&](int r, int column, const Floats& value) { store(desk.by_scores + (size_t)r * pitch + column, value); });
    for (int r = 0; r < rows; r++) slope(b, head, first + r, up, 1 / sums[r], desk.scores + (size_t)r * pitch, desk.by_scores + (size_t)r * pitch);
    const T* slopes = narrow_rows(desk.by_scores, desk.slopes, rows, up);
    T* by_query = at<T>(a.by_query, a.query_strides, b, head, first);
    product(Left<T>{slopes, (size_t)pitch, PAIR<T>}, rows, Right<T>{desk.key_rows, panel_size<T>(a.keys)}, panels,
            (seen + PAIR<T> - 1) / PAIR<T>,
            [&](int r, int column, const Floats& value) { store_part(by_query + r * a.query_strides[2], value, column, a.width); });
    pack_rows(query, a.query_strides[2], rows, a.width, desk.query_rows);
    pack_rows(gradient, a.out_strides[2], rows, a.width, desk.gradient_rows);
    gather(pair_rows(desk.by_scores, desk.slope_pairs, rows, up), seen, desk.query_rows, rows, pairs, desk.by_keys);
    gather(pair_rows(desk.scores, desk.share_pairs, rows, up), seen, desk.gradient_rows, rows, pairs, desk.by_values);
  }

  // Of a row: shares to probabilities, gradients by them to those by the scores, scaled for the queries' and keys'.
  void slope(int b, int head, int query, int up, float inverse, float* shares, float* by) {
    Floats total = splat(0);
    for (int i = 0; i < up; i += LANES) {
      const Floats share = load(shares + i) * splat(inverse);
      store(shares + i, share);
      total = multiply_add(share, load(by + i), total);
    }
    const Floats mean = splat(sum(total)), scale = splat(a.scale);
    float* learned = nullptr;
    if (a.by_mask) learned = a.by_mask + ((a.mask_strides[0] ? (int64_t)b * a.heads : 0) + head) * a.queries * a.keys + (int64_t)query * a.keys;
    for (int i = 0; i < up; i += LANES) {
      const Floats value = load(shares + i) * (load(by + i) - mean);
      if (learned) store_part(learned, load_part(learned, i, a.keys) + value, i, a.keys);
      store(by + i, value * scale);
    }
  }

  // to (keys, width) += the left one, transposed, times packed rows.
  void gather(const T* left, int seen, const T* packed, int rows, int pairs, float* to) {
    product(Left<T>{left, PAIR<T>, (size_t)pitch * PAIR<T>}, seen, Right<T>{packed, panel_size<T>(rows)}, panels, pairs,
            [&](int s, int column, const Floats& value) {
              float* place = to + (size_t)s * wide + column;
              store(place, load(place) + value);
            });
  }

  const float* narrow_rows(const float* from, float*, int, int) { return from; }
  const float* pair_rows(const float* from, float*, int, int) { return from; }

  const uint16_t* narrow_rows(const float* from, uint16_t* to, int rows, int up) {
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < up; i += LANES) store(to + (size_t)r * pitch + i, load(from + (size_t)r * pitch + i));
    return to;
  }

  const uint16_t* pair_rows(const float* from, uint16_t* to, int rows, int up) {
    for (int r = 0; r < rows; r += 2)
      for (int i = 0; i < up; i += LANES) {
        uint16_t first[LANES], second[LANES] = {};
        store(first, load(from + (size_t)r * pitch + i));
        if (r + 1 < rows) store(second, load(from + (size_t)(r + 1) * pitch + i));
        interleave(first, second, to + (size_t)r * pitch + 2 * i);
      }
    return to;
  }
};

}  // namespace
