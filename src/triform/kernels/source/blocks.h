// Products of two matrices in fp32 or bf16, block by block, with sums in fp32.
//
// The left one stays as it is: its element (row, k) is at row * row_stride + k * depth_stride. The right one is packed in panels of 16
// columns, row after row. In bf16 both go by pairs along k: a pair of the left one lies in one place, and a row of a panel holds 16
// pairs; `depth` and `depth_stride` count pairs then.
#pragma once

#include "attention.h"

namespace {

template <class T>
constexpr int PAIR = sizeof(T) == 2 ? 2 : 1;

inline int round_up(int count, int unit) { return (count + unit - 1) / unit * unit; }

template <class T>
constexpr size_t panel_size(int depth) {
  return (size_t)round_up(depth, PAIR<T>) * LANES;
}

// Sixteen pairs of two rows.
inline void interleave(const uint16_t* first, const uint16_t* second, uint16_t* to) {
  uint32_t pairs[LANES];
  UNROLL for (int i = 0; i < LANES; i++) pairs[i] = first[i] | (uint32_t)second[i] << 16;
  memcpy(to, pairs, sizeof pairs);
}

inline void interleave(const float*, const float*, float*) {}

// (depth, width), rows `stride` apart, to panels of its columns.
template <class T>
void pack_rows(const T* from, size_t stride, int depth, int width, T* to) {
  for (int first = 0; first < width; first += LANES, to += panel_size<T>(depth)) {
    const int count = width - first < LANES ? width - first : LANES;
    if (count < LANES || depth % PAIR<T>) memset(to, 0, panel_size<T>(depth) * sizeof(T));
    int k = 0;
    for (; PAIR<T> == 2 && count == LANES && k + 2 <= depth; k += 2)
      interleave(from + k * stride + first, from + (k + 1) * stride + first, to + (size_t)k * LANES);
    for (; k < depth; k++) {
      const T* row = from + k * stride + first;
      T* place = to + (size_t)k / PAIR<T> * PAIR<T> * LANES + k % PAIR<T>;
      for (int i = 0; i < count; i++) place[i * PAIR<T>] = row[i];
    }
  }
}

#if defined(__AVX512F__)
// Words (row i, column k) to (k, i), 16 x 16.
inline void transpose(__m512i* rows) {
  __m512i t[LANES];
  UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  UNROLL for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  UNROLL for (int half = 0; half < 16; half += 8)
    UNROLL for (int i = 0; i < 4; i++) {
      t[half + i] = _mm512_shuffle_i32x4(rows[half + i], rows[half + 4 + i], 0x88);
      t[half + 4 + i] = _mm512_shuffle_i32x4(rows[half + i], rows[half + 4 + i], 0xdd);
    }
  UNROLL for (int i = 0; i < 4; i++) {
    rows[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    rows[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    rows[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    rows[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}
#endif

// (width, depth), rows `stride` apart, to panels of its rows.
template <class T>
void pack_columns(const T* from, size_t stride, int depth, int width, T* to) {
  for (int first = 0; first < width; first += LANES, to += panel_size<T>(depth)) {
    const int count = width - first < LANES ? width - first : LANES;
    if (count < LANES || depth % PAIR<T>) memset(to, 0, panel_size<T>(depth) * sizeof(T));
    int k = 0;
#if defined(__AVX512F__)
    for (constexpr int WORDS = LANES * PAIR<T>; count == LANES && k + WORDS <= depth; k += WORDS) {
      __m512i rows[LANES];
      UNROLL for (int i = 0; i < LANES; i++) rows[i] = _mm512_loadu_si512(from + (first + i) * stride + k);
      transpose(rows);
      UNROLL for (int i = 0; i < LANES; i++) _mm512_storeu_si512(to + (size_t)k * LANES + (size_t)i * WORDS, rows[i]);
    }
#endif
    for (; k < depth; k += PAIR<T>)
      for (int i = 0; i < count; i++)
        memcpy(to + (size_t)k * LANES + i * PAIR<T>, from + (first + i) * stride + k, sizeof(T) * (k + PAIR<T> <= depth ? PAIR<T> : 1));
  }
}

template <int R, int P>
inline void block(const float* a, size_t row_stride, size_t depth_stride, const float* b, size_t panel, int depth, float* out) {
  Floats total[R][P];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) total[r][p] = splat(0);
  for (int k = 0; k < depth; k++, a += depth_stride, b += LANES) {
    Floats right[P];
    UNROLL for (int p = 0; p < P; p++) right[p] = load(b + p * panel);
    UNROLL for (int r = 0; r < R; r++) {
      const Floats left = splat(a[r * row_stride]);
      UNROLL for (int p = 0; p < P; p++) total[r][p] = multiply_add(right[p], left, total[r][p]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) store(out + (r * P + p) * LANES, total[r][p]);
}

template <int R, int P>
inline void block(const uint16_t* a, size_t row_stride, size_t depth_stride, const uint16_t* b, size_t panel, int depth, float* out) {
  Floats total[R][P];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) total[r][p] = splat(0);
  for (int k = 0; k < depth; k++, a += depth_stride, b += 2 * LANES) {
    UNROLL for (int r = 0; r < R; r++) {
      uint32_t two;
      memcpy(&two, a + r * row_stride, 4);
      UNROLL for (int p = 0; p < P; p++) dot_pair(total[r][p], b + p * panel, two);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) store(out + (r * P + p) * LANES, total[r][p]);
}

template <class T>
struct Left {
  const T* data;
  size_t row_stride, depth_stride;
};

template <class T>
struct Right {
  const T* data;
  size_t panel;
};

// sink(row, column, value) takes 16 columns of a product from `column` on.
template <class T, class Sink>
void product(Left<T> a, int rows, Right<T> b, int panels, int depth, const Sink& sink) {
  typedef void (*Block)(const T*, size_t, size_t, const T*, size_t, int, float*);
#define FEW(n) (n <= MOST_ROWS ? n : 1)
#define ALL(P) {block<1, P>, block<2, P>, block<3, P>, block<4, P>, block<FEW(5), P>, block<FEW(6), P>, block<FEW(7), P>, block<FEW(8), P>}
  static const Block single[8] = ALL(1), all[8] = ALL(MOST_PANELS);
#undef ALL
#undef FEW
  float out[MOST_ROWS * MOST_PANELS * LANES];
  const int tiles = (rows + MOST_ROWS - 1) / MOST_ROWS;
  for (int panel = 0; panel < panels;) {
    const int count = panels - panel < MOST_PANELS ? 1 : MOST_PANELS;
    for (int t = 0; t < tiles; t++) {
      const int row = (int)((int64_t)rows * t / tiles), some = (int)((int64_t)rows * (t + 1) / tiles) - row;
      (count == 1 ? single : all)[some - 1](a.data + row * a.row_stride, a.row_stride, a.depth_stride, b.data + panel * b.panel, b.panel, depth, out);
      for (int r = 0; r < some; r++)
        for (int p = 0; p < count; p++) sink(row + r, (panel + p) * LANES, load(out + (r * count + p) * LANES));
    }
    panel += count;
  }
}

}  // namespace
