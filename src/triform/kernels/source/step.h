// One pass through a whole decoder, by several threads that meet after each phase.
#pragma once

#include <sched.h>

#include "attention.h"

namespace {

struct Barrier {
  int arrived, phase;
};

inline void meet(Barrier* barrier, int threads) {
  if (threads == 1) return;
  const int phase = __atomic_load_n(&barrier->phase, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&barrier->arrived, 1, __ATOMIC_ACQ_REL) == threads) {
    __atomic_store_n(&barrier->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&barrier->phase, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int spins = 0; __atomic_load_n(&barrier->phase, __ATOMIC_ACQUIRE) == phase; spins++) {
    if (spins > 4096) {
      sched_yield();  // the one that is waited for may need this core
    } else {
#if defined(__x86_64__)
      _mm_pause();
#elif defined(__aarch64__)
      __asm__ __volatile__("yield");
#endif
    }
  }
}

// Where the numbers of a pass are, in the caller's workspace.
struct Space {
  float *x, *y, *query, *key, *value, *mixed, *hidden, *scores;
  char *input, *inner;  // as the weights want them
  size_t score_room, score_size, bytes;
};

inline int most(int a, int b) { return a > b ? a : b; }

inline Space lay_out(const Program& p, const Batch& b, int threads) {
  int heads = 1, kv = 1, group = 1, hidden = most(p.dense.rows, 1), inner = 1;
  for (int i = 0; i < p.depth; i++) {
    const Layer& layer = p.layers[i];
    heads = most(heads, most(layer.self.query.rows, layer.cross.query.rows));
    kv = most(kv, layer.self.key.rows);
    group = most(group, layer.self.heads / layer.self.kv_heads);
    if (layer.cross.heads) group = most(group, layer.cross.heads / layer.cross.kv_heads);
    hidden = most(hidden, layer.up.rows);
  }
  inner = most(heads, hidden);
  const size_t rows = (size_t)b.rows;
  const size_t keys = (size_t)(b.capacity > b.source_capacity ? b.capacity : b.source_capacity);
  Space s = {};
  char* base = (char*)b.workspace;
  size_t at = 0;
  const auto take = [&](size_t bytes) {
    char* found = base + at;
    at += (bytes + 127) / 64 * 64;
    return found;
  };
  s.x = (float*)take(rows * p.width * 4);
  s.y = (float*)take(rows * p.width * 4);
  s.query = (float*)take(rows * heads * 4);
  s.key = (float*)take(rows * kv * 4);
  s.value = (float*)take(rows * kv * 4);
  s.mixed = (float*)take(rows * heads * 4);
  s.hidden = (float*)take(rows * hidden * 4);
  s.input = take(rows * (prepared_bytes(F32, p.width) + 64 * BLOCK));
  s.inner = take(rows * (prepared_bytes(F32, inner) + 64 * BLOCK));
  s.score_room = (keys + LANES - 1) / LANES * LANES;
  s.score_size = (s.score_room + LANES) * (size_t)group * (size_t)(b.rows < MOST_TOGETHER ? b.rows : MOST_TOGETHER);
  s.scores = (float*)take(s.score_size * 4 * threads);
  s.bytes = at;
  return s;
}

class Pass {
 public:
  Pass(const Program& program, const Batch& batch, Barrier* barrier, int thread, int threads, bool together)
      : p(program), b(batch), s(lay_out(program, batch, threads)), barrier(barrier), thread(thread), threads(threads), together(together) {}

  void run() {
    rows([&](int r) { embed(r); });
    for (int i = 0; i < p.depth; i++) {
      const Layer& layer = p.layers[i];
      attention(layer, i);
      if (layer.cross.heads) cross_attention(layer, i);
      feed_forward(layer);
    }
    score();
  }

 private:
  const Program& p;
  const Batch& b;
  const Space s;
  Barrier* barrier;
  const int thread, threads;
  const bool together;  // some tokens are of one slot

  void meet() { ::meet(barrier, threads); }

  float* x_of(int row) const { return s.x + (size_t)row * p.width; }
  float* y_of(int row) const { return s.y + (size_t)row * p.width; }

  template <class F>
  void rows(const F& f) {
    for (int r = thread; r < b.rows; r += threads) f(r);
  }

  void embed(int r) {
    float* x = x_of(r);
    matrix_row(p.table, b.tokens[r], x);
    if (p.embed_scale != 1) scale(x, p.embed_scale, p.width);
    if (p.positions) add(x, p.positions + b.places[r] * p.width, p.width);
    if (p.segment) add(x, p.segment, p.width);
    normalize(p.input_norm, x, p.width, x);
  }

  // What a sublayer reads: the residual stream, normed before it or not, in the form that its weights want.
  void enter(const Layer& layer, int sublayer, int kind) {
    rows([&](int r) {
      const float* from = x_of(r);
      if (layer.placement != POST) {
        normalize(layer.norms[sublayer], from, p.width, y_of(r));
        from = y_of(r);
      }
      prepare(kind, from, p.width, 0, p.width, s.input + r * prepared_bytes(kind, p.width));
    });
    meet();
  }

  // The product that ends a sublayer, and the sum with the residual stream.
  void leave(const Layer& layer, int sublayer, const Matrix& out) {
    const bool sandwich = layer.placement == SANDWICH;
    multiply(out, share(panels_of(out), thread, threads), s.inner, prepared_bytes(out.kind, out.columns), b.rows,
             [&](int r, int column, const Floats& value) {
               float* to = sandwich ? y_of(r) : x_of(r);
               store_outputs(to, sandwich ? value : value + load_outputs(to, column, p.width), column, p.width);
             });
    meet();
    if (layer.placement == PRE) return;
    rows([&](int r) {
      if (sandwich) {
        normalize(layer.norms_out[sublayer], y_of(r), p.width, y_of(r));
        add(x_of(r), y_of(r), p.width);
      } else {
        normalize(layer.norms[sublayer], x_of(r), p.width, x_of(r));
      }
    });
  }

  // Several products of the same input, as if they were one.
  void project(const Matrix* const* matrices, float* const* to, int count) {
    int total = 0, before = 0;
    for (int i = 0; i < count; i++) total += panels_of(*matrices[i]);
    const Range mine = share(total, thread, threads);
    for (int i = 0; i < count; i++) {
      const Matrix& m = *matrices[i];
      const int panels = panels_of(m);
      const Range part = {most(mine.first - before, 0), mine.last - before < panels ? mine.last - before : panels};
      before += panels;
      if (part.first >= part.last) continue;
      multiply(m, part, s.input, prepared_bytes(m.kind, p.width), b.rows, [&](int r, int column, const Floats& value) {
        store_outputs(to[i] + (size_t)r * m.rows, value, column, m.rows);
      });
    }
    meet();
  }

  // f(first row, last row, key-value head) for this thread's part of them; the rows are of one slot.
  template <class F>
  void heads(const Attention& a, int most_rows, const F& f) {
    int task = 0;
    for (int first = 0, last; first < b.rows; first = last) {
      for (last = first + 1; last < b.rows && last - first < most_rows && b.slots[last] == b.slots[first];) last++;
      for (int h = 0; h < a.kv_heads; h++)
        if (task++ % threads == thread) f(first, last, h);
    }
  }

  void attention(const Layer& layer, int index) {
    const Attention& a = layer.self;
    enter(layer, 0, a.query.kind);
    const Matrix* matrices[] = {&a.query, &a.key, &a.value};
    float* to[] = {s.query, s.key, s.value};
    project(matrices, to, 3);
    if (b.cache_kind == BF16) look_back(a, (uint16_t*)b.keys[index], (uint16_t*)b.values[index]);
    else look_back(a, (float*)b.keys[index], (float*)b.values[index]);
    leave(layer, 0, a.out);
  }

  template <class T>
  void look_back(const Attention& a, T* keys, T* values) {
    const int width = a.head_width;
    const auto slot_head = [&](int r, int h) { return ((size_t)b.slots[r] * a.kv_heads + h) * (size_t)b.capacity * width; };
    const auto put = [&](int r, int, int h) {
      float* key = s.key + ((size_t)r * a.kv_heads + h) * width;
      turn(a, a.key_norm, key, b.places[r]);
      const size_t at = slot_head(r, h) + (size_t)b.places[r] * width;
      copy_to(keys + at, key, width);
      copy_to(values + at, s.value + ((size_t)r * a.kv_heads + h) * width, width);
    };
    if (together) {
      heads(a, 1, put);
      meet();
    }
    heads(a, MOST_TOGETHER, [&](int r, int end, int h) {
      if (!together) put(r, end, h);
      attend_to(a, r, end, h, keys + slot_head(r, h), values + slot_head(r, h), [&](Seeing& seeing) {
        seeing.last = (int)seeing.place + 1;
        seeing.first = a.window && seeing.last > a.window ? seeing.last - a.window : 0;
      });
    });
    finish_mixing(a);
  }

  void cross_attention(const Layer& layer, int index) {
    const Attention& a = layer.cross;
    enter(layer, 1, a.query.kind);
    const Matrix* matrices[] = {&a.query};
    float* to[] = {s.query};
    project(matrices, to, 1);
    if (b.cache_kind == BF16) look_across(a, (const uint16_t*)b.cross_keys[index], (const uint16_t*)b.cross_values[index]);
    else look_across(a, (const float*)b.cross_keys[index], (const float*)b.cross_values[index]);
    leave(layer, 1, a.out);
  }

  template <class T>
  void look_across(const Attention& a, const T* keys, const T* values) {
    heads(a, MOST_TOGETHER, [&](int r, int end, int h) {
      const size_t at = ((size_t)b.slots[r] * a.kv_heads + h) * (size_t)b.source_capacity * a.head_width;
      attend_to(a, r, end, h, keys + at, values + at, [&](Seeing& seeing) {
        seeing.first = 0;
        seeing.last = (int)b.memory_lengths[b.slots[r]];
      });
    });
    finish_mixing(a);
  }

  template <class T, class F>
  void attend_to(const Attention& a, int row, int end, int h, const T* keys, const T* values, const F& sees) {
    const int group = a.heads / a.kv_heads, columns = a.heads * a.head_width, from = h * group * a.head_width;
    Seeing seeing[MOST_TOGETHER];
    for (int r = row; r < end; r++) {
      float* queries = s.query + (size_t)r * columns + from;
      for (int g = 0; g < group; g++) turn(a, a.query_norm, queries + (size_t)g * a.head_width, b.places[r]);
      scale(queries, a.scale, group * a.head_width);
      seeing[r - row] = {queries, s.mixed + (size_t)r * columns + from, b.places[r], 0, 0};
      sees(seeing[r - row]);
    }
    attend(a, h, seeing, end - row, keys, values, s.scores + s.score_size * thread, s.score_room);
    if (!in_blocks(a)) return;
    for (int r = row; r < end; r++)
      prepare(a.out.kind, s.mixed + (size_t)r * columns, columns, from, from + group * a.head_width,
              s.inner + r * prepared_bytes(a.out.kind, columns));
  }

  // Whether the heads of a group fill blocks of 32, so that who mixed them can prepare them too.
  static bool in_blocks(const Attention& a) { return a.heads / a.kv_heads * a.head_width % BLOCK == 0; }

  void finish_mixing(const Attention& a) {
    meet();
    if (in_blocks(a)) return;
    const int columns = a.heads * a.head_width;
    rows([&](int r) { prepare(a.out.kind, s.mixed + (size_t)r * columns, columns, 0, columns, s.inner + r * prepared_bytes(a.out.kind, columns)); });
    meet();
  }

  void feed_forward(const Layer& layer) {
    const Matrix &gate = layer.gate, &up = layer.up;
    const int hidden = up.rows;
    enter(layer, 2, up.kind);
    const Range mine = share(panels_of(up), thread, threads, BLOCK / LANES);
    const size_t stride = prepared_bytes(up.kind, p.width);
    if (gate.kind != NONE)
      multiply(gate, mine, s.input, stride, b.rows, [&](int r, int column, const Floats& value) {
        store_outputs(s.hidden + (size_t)r * hidden, activate(layer.activation, value), column, hidden);
      });
    multiply(up, mine, s.input, stride, b.rows, [&](int r, int column, const Floats& value) {
      float* to = s.hidden + (size_t)r * hidden;
      const Floats out = gate.kind != NONE ? load_outputs(to, column, hidden) * value : activate(layer.activation, value);
      store_outputs(to, out, column, hidden);
    });
    const int first = mine.first * LANES, last = mine.last * LANES < hidden ? mine.last * LANES : hidden;
    if (first < last)
      for (int r = 0; r < b.rows; r++)
        prepare(layer.down.kind, s.hidden + (size_t)r * hidden, hidden, first, last, s.inner + r * prepared_bytes(layer.down.kind, hidden));
    meet();
    leave(layer, 2, layer.down);
  }

  void score() {
    if (p.layers[p.depth - 1].placement != PRE) meet();  // rows are taken up here by others than those who ended them
    const int count = b.wanted_rows;
    const bool dense = p.dense.kind != NONE;
    const auto wanted = [&](const auto& f) {
      for (int i = thread; i < count; i += threads) f(i);
      meet();
    };
    wanted([&](int i) {
      normalize(p.norm, x_of(b.wanted[i]), p.width, y_of(i));
      if (!dense && p.head_scale != 1) scale(y_of(i), p.head_scale, p.width);
      const int kind = dense ? p.dense.kind : p.head.kind;
      prepare(kind, y_of(i), p.width, 0, p.width, s.input + i * prepared_bytes(kind, p.width));
    });
    if (dense) {
      multiply(p.dense, share(panels_of(p.dense), thread, threads), s.input, prepared_bytes(p.dense.kind, p.width), count,
               [&](int i, int column, const Floats& value) {
                 store_outputs(s.hidden + (size_t)i * p.width, activate(p.activation, value), column, p.width);
               });
      meet();
      wanted([&](int i) {
        normalize(p.head_norm, s.hidden + (size_t)i * p.width, p.width, y_of(i));
        if (p.head_scale != 1) scale(y_of(i), p.head_scale, p.width);
        prepare(p.head.kind, y_of(i), p.width, 0, p.width, s.input + i * prepared_bytes(p.head.kind, p.width));
      });
    }
    multiply(p.head, share(panels_of(p.head), thread, threads), s.input, prepared_bytes(p.head.kind, p.width), count,
             [&](int i, int column, const Floats& value) { store_outputs(b.scores + (size_t)i * p.head.rows, value, column, p.head.rows); });
  }
};

}  // namespace
