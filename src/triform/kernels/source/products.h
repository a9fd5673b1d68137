// Linear layers: y = W x for one row or many, over fp32, bf16, 8-bit and 4-bit weights.
//
// W is kept in panels of 16 rows, column after column, so that one register holds a column of a panel (or 2 or 4 columns of the
// shorter formats) and the input's number is broadcast against it. A panel is read once, front to back, for up to 8 rows of input:
//   F32   columns x 16 floats
//   BF16  pairs of columns x 16 rows x 2; an odd last column is followed by zeros
//   Q8    blocks of 32 columns: 8 x (16 rows x 4 columns), unsigned with 128 added; then for each block 16 scales in fp16
//   Q4    blocks of 32 columns: 4 x (16 rows x 4 bytes), the low half of byte k is column k, the high half column k + 16, as in
//         GGUF's Q4_0; then the scales. Values and scales of both are those of Q8_0 and Q4_0; columns are padded with zeros.
// Panels begin at multiples of 64 bytes. The numbers of a row are added in the same order whatever the number of rows, so that a
// result never depends on what it was computed beside.
#pragma once

#include "api.h"
#include "dots.h"

namespace {

constexpr int BLOCK = 32;
#if defined(__AVX512F__)
constexpr int MOST_ROWS = 8, MOST_ROWS_OF_BLOCKS = 6, MOST_PANELS = 2;  // what 32 registers hold
#else
constexpr int MOST_ROWS = 4, MOST_ROWS_OF_BLOCKS = 4, MOST_PANELS = 1;
#endif

inline int blocks_of(int columns) { return (columns + BLOCK - 1) / BLOCK; }

inline size_t panel_bytes(int kind, int columns) {
  size_t bytes = 0;
  if (kind == F32) bytes = (size_t)columns * LANES * 4;
  if (kind == BF16) bytes = (size_t)(columns + 1) / 2 * LANES * 4;
  if (kind == Q8) bytes = (size_t)blocks_of(columns) * LANES * (BLOCK + 2);
  if (kind == Q4) bytes = (size_t)blocks_of(columns) * LANES * (BLOCK / 2 + 2);
  return (bytes + 63) / 64 * 64;
}

inline int panels_of(const Matrix& m) { return (m.rows + LANES - 1) / LANES; }

struct Range {
  int first, last;
};

// A thread's part of so many things, in whole units.
inline Range share(int total, int thread, int threads, int unit = 1) {
  const int64_t units = (total + unit - 1) / unit;
  const int first = (int)(units * thread / threads) * unit, last = (int)(units * (thread + 1) / threads) * unit;
  return {first < total ? first : total, last < total ? last : total};
}

// The input, as the weights want it: fp32, pairs of bf16, or blocks of 8 bits, their scales, and where their sums start from.

inline size_t prepared_bytes(int kind, int columns) {
  if (kind == F32) return (size_t)columns * 4;
  if (kind == BF16) return (size_t)(columns + 1) / 2 * 4;
  return (size_t)blocks_of(columns) * (BLOCK + 8);
}

inline void prepare_block(const float* x, int count, int offset, int8_t* quants, float* scale, int32_t* start) {
  typedef int8_t NativeByte __attribute__((vector_size(NATIVE)));
  Floats parts[2] = {count >= LANES ? load(x) : load_some(x, count),
                     count >= BLOCK ? load(x + LANES) : load_some(x + (count > LANES ? LANES : 0), count > LANES ? count - LANES : 0)};
  const float a = highest(absolute(parts[0])), b = highest(absolute(parts[1])), most = a > b ? a : b;
  const Floats inverse = splat(most > 0 ? 127 / most : 0), magic = splat(12582912.0f);
  NativeInt sums = {};
  for (int i = 0; i < 2; i++) {
    const Floats shifted = multiply_add(parts[i], inverse, magic);
    for (int k = 0; k < PARTS; k++) {
      const NativeInt whole = (NativeInt)shifted.part[k] - 0x4b400000;
      const NativeByte bytes = __builtin_convertvector(whole, NativeByte);
      memcpy(quants + i * LANES + k * NATIVE, &bytes, sizeof bytes);
      sums += whole;
    }
  }
  int32_t all = 0;
  for (int k = 0; k < NATIVE; k++) all += sums[k];
  *start = -offset * all;
  *scale = most / 127 + 0 * sum(parts[0] + parts[1]);  // what is not finite has to stay so
}

// Columns [first, last) of a row; first is a multiple of 32, and last too unless it is the row's end.
inline void prepare(int kind, const float* x, int columns, int first, int last, char* to) {
  if (kind == F32) {
    memcpy(to + (size_t)first * 4, x + first, (size_t)(last - first) * 4);
  } else if (kind == BF16) {
    uint16_t* pairs = (uint16_t*)to;
    int i = first;
    for (; i + LANES <= last; i += LANES) store(pairs + i, load(x + i));
    if (i < last) {
      uint16_t rest[LANES];
      store(rest, load_some(x + i, last - i));
      memcpy(pairs + i, rest, (size_t)(last - i) * 2);
    }
    if (last == columns && columns % 2) pairs[columns] = 0;
  } else {
    const int blocks = blocks_of(columns);
    int8_t* quants = (int8_t*)to;
    float* scales = (float*)(to + (size_t)blocks * BLOCK);
    int32_t* starts = (int32_t*)(scales + blocks);
    for (int b = first / BLOCK; b * BLOCK < last; b++)
      prepare_block(x + b * BLOCK, columns - b * BLOCK, kind == Q8 ? OFFSET_Q8 : OFFSET_Q4, quants + b * BLOCK, scales + b,
                    starts + b);
  }
}

// Asks for weights before they are needed. Panels follow each other in memory, but a processor's own prefetching starts anew with
// each, and what it reads of a small matrix is over before that has got going.
constexpr int AHEAD = 4096;  // bytes
inline void fetch(const void* from) { __builtin_prefetch((const char*)from + AHEAD, 0, 2); }

// What R rows of prepared input and P panels give, to out (R, P * 16)

typedef void (*Strip)(const char* panel, size_t panel_stride, int columns, const char* x, size_t stride, float* out);

template <int R, int P>
void strip_f32(const char* panel, size_t panel_stride, int columns, const char* x, size_t stride, float* out) {
  Floats total[R][P];
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) total[r][p] = splat(0);
  for (int k = 0; k < columns; k++) {
    Floats weights[P];
    for (int p = 0; p < P; p++) {
      const float* from = (const float*)(panel + p * panel_stride) + (size_t)k * LANES;
      if (R <= 4) fetch(from);
      weights[p] = load(from);
    }
    for (int r = 0; r < R; r++) {
      const Floats input = splat(*(const float*)(x + r * stride + (size_t)k * 4));
      for (int p = 0; p < P; p++) total[r][p] = multiply_add(weights[p], input, total[r][p]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) store(out + (r * P + p) * LANES, total[r][p]);
}

template <int R, int P>
void strip_bf16(const char* panel, size_t panel_stride, int columns, const char* x, size_t stride, float* out) {
  Floats total[R][P];
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) total[r][p] = splat(0);
  for (int k = 0; k < (columns + 1) / 2; k++) {
    for (int p = 0; p < P && R <= 4; p++) fetch(panel + p * panel_stride + (size_t)k * 4 * LANES);
    for (int r = 0; r < R; r++) {
      uint32_t two;
      memcpy(&two, x + r * stride + (size_t)k * 4, 4);
      for (int p = 0; p < P; p++) dot_pair(total[r][p], (const uint16_t*)(panel + p * panel_stride) + (size_t)k * 2 * LANES, two);
    }
  }
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) store(out + (r * P + p) * LANES, total[r][p]);
}

template <int KIND, int R, int P>
void strip_blocks(const char* panel, size_t panel_stride, int columns, const char* x, size_t stride, float* out) {
  constexpr int SIZE = KIND == Q8 ? BLOCK * LANES : BLOCK * LANES / 2;
  constexpr int CHAINS = R <= 2 ? 2 : 1;  // with few rows, sums that wait for each other would cost time
  const int blocks = blocks_of(columns);
  const char* input_scales = x + (size_t)blocks * BLOCK;
  const char* input_starts = input_scales + (size_t)blocks * 4;
  Floats total[R][P];
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) total[r][p] = splat(0);
  for (int b = 0; b < blocks; b++) {
    Ints part[R][P][CHAINS];
    for (int r = 0; r < R; r++)
      for (int p = 0; p < P; p++)
        for (int c = 0; c < CHAINS; c++) part[r][p][c] = start(c ? 0 : *(const int32_t*)(input_starts + r * stride + (size_t)b * 4));
    for (int q = 0; q < SIZE / 64; q++) {
      Bytes low[P], high[P];
      for (int p = 0; p < P; p++) {
        const uint8_t* weights = (const uint8_t*)panel + p * panel_stride + (size_t)b * SIZE + 64 * q;
        if (R <= 4) fetch(weights);
        if (KIND == Q8) low[p] = load_q8(weights); else load_q4(weights, low[p], high[p]);
      }
      for (int r = 0; r < R; r++) {
        int32_t four;
        memcpy(&four, x + r * stride + (size_t)b * BLOCK + 4 * q, 4);
        for (int p = 0; p < P; p++) dot(part[r][p][KIND == Q8 ? q % CHAINS : 0], low[p], four);
        if (KIND == Q4) {
          memcpy(&four, x + r * stride + (size_t)b * BLOCK + 16 + 4 * q, 4);
          for (int p = 0; p < P; p++) dot(part[r][p][CHAINS - 1], high[p], four);
        }
      }
    }
    for (int p = 0; p < P; p++) {
      const Floats scales = load_halves((const uint16_t*)(panel + p * panel_stride + (size_t)blocks * SIZE) + (size_t)b * LANES);
      for (int r = 0; r < R; r++) {
        const Floats both = scales * splat(*(const float*)(input_scales + r * stride + (size_t)b * 4));
        const Ints whole = CHAINS == 2 ? together(part[r][p][0], part[r][p][CHAINS - 1]) : part[r][p][0];
        total[r][p] = multiply_add(to_floats(whole), both, total[r][p]);
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) store(out + (r * P + p) * LANES, total[r][p]);
}

template <int P>
Strip strip_of(int kind, int rows) {
#define FEW(n) (n <= MOST_ROWS ? n : 1)  // the others are never asked for
#define ROWS(f, ...)                                                                                                \
  {f<__VA_ARGS__ 1, P>, f<__VA_ARGS__ 2, P>, f<__VA_ARGS__ 3, P>, f<__VA_ARGS__ 4, P>,                              \
   f<__VA_ARGS__ FEW(5), P>, f<__VA_ARGS__ FEW(6), P>, f<__VA_ARGS__ FEW(7), P>, f<__VA_ARGS__ FEW(8), P>}
#define COMMA ,
  static const Strip all[4][8] = {ROWS(strip_f32), ROWS(strip_bf16), ROWS(strip_blocks, Q8 COMMA), ROWS(strip_blocks, Q4 COMMA)};
#undef COMMA
#undef ROWS
#undef FEW
  return all[kind - F32][rows - 1];
}

// Panels [first, last) for all rows; sink(row, column, value) takes 16 outputs from `column` on, of which those beyond the last row
// of the matrix mean nothing.
template <class Sink>
inline void multiply(const Matrix& m, Range panels, const char* x, size_t stride, int rows, const Sink& sink) {
  const size_t bytes = panel_bytes(m.kind, m.columns);
  const int tile = m.kind == Q8 || m.kind == Q4 ? MOST_ROWS_OF_BLOCKS : MOST_ROWS, tiles = (rows + tile - 1) / tile;
  float out[MOST_ROWS * MOST_PANELS * LANES];
  for (int panel = panels.first; panel < panels.last;) {
    const int count = panels.last - panel < MOST_PANELS ? 1 : MOST_PANELS;
    const char* data = (const char*)m.data + (size_t)panel * bytes;
    for (int t = 0; t < tiles; t++) {
      const int row = (int)((int64_t)rows * t / tiles), some = (int)((int64_t)rows * (t + 1) / tiles) - row;
      (count == 1 ? strip_of<1> : strip_of<MOST_PANELS>)(m.kind, some)(data, bytes, m.columns, x + row * stride, stride, out);
      for (int r = 0; r < some; r++) {
        for (int p = 0; p < count; p++) {
          const int column = (panel + p) * LANES;
          Floats value = load(out + (r * count + p) * LANES);
          if (m.bias) value = value + (column + LANES <= m.rows ? load(m.bias + column) : load_some(m.bias + column, m.rows - column));
          sink(row + r, column, value);
        }
      }
    }
    panel += count;
  }
}

inline void store_outputs(float* to, const Floats& value, int column, int columns) {
  if (column + LANES <= columns) store(to + column, value); else store_some(to + column, value, columns - column);
}

inline Floats load_outputs(const float* from, int column, int columns) {
  return column + LANES <= columns ? load(from + column) : load_some(from + column, columns - column);
}

// One row of the matrix as fp32: a token's vector.
inline void matrix_row(const Matrix& m, int64_t row, float* to) {
  const char* panel = (const char*)m.data + (size_t)(row / LANES) * panel_bytes(m.kind, m.columns);
  const int lane = (int)(row % LANES), blocks = blocks_of(m.columns);
  const int size = m.kind == Q8 ? BLOCK * LANES : BLOCK * LANES / 2;
  for (int k = 0; k < m.columns; k++) {
    if (m.kind == F32) {
      to[k] = ((const float*)panel)[(size_t)k * LANES + lane];
    } else if (m.kind == BF16) {
      const uint32_t bits = (uint32_t)((const uint16_t*)panel)[(size_t)(k / 2) * 2 * LANES + 2 * lane + k % 2] << 16;
      memcpy(to + k, &bits, 4);
    } else {
      const int b = k / BLOCK, at = k % BLOCK, byte = m.kind == Q8 ? at : at % 16;
      const uint8_t found = ((const uint8_t*)panel)[(size_t)b * size + (byte / 4) * 64 + lane * 4 + byte % 4];
      const int value = m.kind == Q8 ? found - 128 : (at < 16 ? found & 15 : found >> 4) - 8;
      to[k] = (float)value * half_to_float(((const uint16_t*)(panel + (size_t)blocks * size))[(size_t)b * LANES + lane]);
    }
  }
}

}  // namespace
