// What a training step does between its products: norms, rotations, gated activations, the rows of the loss and the optimizer's
// step. Numbers are fp32 or bf16, sums are in fp32, and a row is read once or stays in the caches.
#pragma once

#include "attention.h"
#include "variants.h"

namespace {

inline void store_part(float* to, const Floats& value, int at, int count) { store_outputs(to, value, at, count); }

inline void store_part(uint16_t* to, const Floats& value, int at, int count) {
  if (at + LANES <= count) return store(to + at, value);
  uint16_t all[LANES];
  store(all, value);
  memcpy(to + at, all, (size_t)(count - at) * 2);
}

// Zeros from a count on.
inline Floats cut(const Floats& value, int count) {
  if (count >= LANES) return value;
  float all[LANES];
  store(all, value);
  return load_some(all, count);
}

inline Floats square_root(const Floats& a) {
  Floats out;
  for (int i = 0; i < PARTS; i++) {
#if defined(__AVX512F__)
    out.part[i] = _mm512_sqrt_ps(a.part[i]);
#elif defined(__AVX2__)
    out.part[i] = _mm256_sqrt_ps(a.part[i]);
#elif defined(__aarch64__)
    out.part[i] = vsqrtq_f32(a.part[i]);
#else
    for (int k = 0; k < NATIVE; k++) out.part[i][k] = sqrtf(a.part[i][k]);
#endif
  }
  return out;
}

inline Floats larger(const Floats& a, const Floats& b) {
  Floats out;
  for (int i = 0; i < PARTS; i++) out.part[i] = a.part[i] > b.part[i] ? a.part[i] : b.part[i];
  return out;
}

// Norms

template <class X, class Y>
void norm_rows(const NormRows& n, Team team) {
  const int width = n.width;
  const Range mine = share(n.rows, team.thread, team.threads);
  for (int r = mine.first; r < mine.last; r++) {
    const X* x = (const X*)n.x + (size_t)r * width;
    Y* out = (Y*)n.out + (size_t)r * width;
    Floats total = splat(0);
    float mean = 0;
    if (n.kind == LAYER_NORM) {
      for (int i = 0; i < width; i += LANES) total = total + load_part(x, i, width);
      n.mean[r] = mean = sum(total) / (float)width;
      total = splat(0);
    }
    for (int i = 0; i < width; i += LANES) {
      const Floats off = cut(load_part(x, i, width) - splat(mean), width - i);
      total = multiply_add(off, off, total);
    }
    const float inverse = n.inverse[r] = 1 / sqrtf(sum(total) / (float)width + n.eps);
    for (int i = 0; i < width; i += LANES) {
      Floats value = (load_part(x, i, width) - splat(mean)) * splat(inverse) * (load_part(n.weight, i, width) + splat(n.offset));
      if (n.bias) value = value + load_part(n.bias, i, width);
      store_part(out, value, i, width);
    }
  }
}

constexpr int ROWS_AT_ONCE = 64;

// Adds a sum of few rows to that of all before it, which alone would lose digits where rows are many.
inline void add_up(float* sums, int width) {
  for (int i = 0; i < width; i += LANES) {
    store_part(sums, load_part(sums, i, width) + load_part(sums + width, i, width), i, width);
    store_part(sums + width, splat(0), i, width);
  }
}

// by_weight and by_bias are (threads, 2, width), zeros to begin with, and parts of sums at the end.
template <class X, class Y>
void norm_rows_back(const NormRows& n, Team team) {
  const int width = n.width;
  const Range mine = share(n.rows, team.thread, team.threads);
  float* by_weight = n.by_weight + (size_t)team.thread * 2 * width;
  float* by_bias = n.by_bias ? n.by_bias + (size_t)team.thread * 2 * width : nullptr;
  const bool layer = n.kind == LAYER_NORM;
  for (int r = mine.first; r < mine.last; r++) {
    const X* x = (const X*)n.x + (size_t)r * width;
    const Y* gradient = (const Y*)n.gradient + (size_t)r * width;
    X* by_x = (X*)n.by_x + (size_t)r * width;
    const Floats mean = splat(layer ? n.mean[r] : 0), inverse = splat(n.inverse[r]);
    Floats along = splat(0), total = splat(0);
    for (int i = 0; i < width; i += LANES) {
      const Floats g = load_part(gradient, i, width), normed = (load_part(x, i, width) - mean) * inverse, by = g * normed;
      const Floats scale = load_part(n.weight, i, width) + splat(n.offset);
      store_part(by_weight + width, load_part(by_weight + width, i, width) + by, i, width);
      if (by_bias) store_part(by_bias + width, load_part(by_bias + width, i, width) + g, i, width);
      along = multiply_add(by, scale, along);
      if (layer) total = multiply_add(g, scale, total);
    }
    const Floats slope = splat(sum(along) / (float)width), middle = splat(sum(total) / (float)width);
    for (int i = 0; i < width; i += LANES) {
      const Floats normed = (load_part(x, i, width) - mean) * inverse, scale = load_part(n.weight, i, width) + splat(n.offset);
      store_part(by_x, (load_part(gradient, i, width) * scale - middle - normed * slope) * inverse, i, width);
    }
    if ((r - mine.first) % ROWS_AT_ONCE == ROWS_AT_ONCE - 1) {
      add_up(by_weight, width);
      if (by_bias) add_up(by_bias, width);
    }
  }
}

// Rotation of heads (Su et al. 2021; the pairs are i and i + half); the sines of the first half have their sign changed.

template <class T>
void turn_rows(const Turn& t, Team team) {
  const int half = t.width / 2;
  const Floats way = splat(t.back ? -1.0f : 1.0f);
  const Range mine = share(t.batch * t.tokens, team.thread, team.threads);
  for (int place = mine.first; place < mine.last; place++) {
    const int64_t b = place / t.tokens, token = place % t.tokens;
    const float *cosine = t.cosine + b * t.turn_strides[0] + token * t.turn_strides[1], *sine = t.sine + (cosine - t.cosine);
    for (int64_t head = 0; head < t.heads; head++) {
      const T* x = (const T*)t.x + b * t.x_strides[0] + head * t.x_strides[1] + token * t.x_strides[2];
      T* out = (T*)t.out + b * t.out_strides[0] + head * t.out_strides[1] + token * t.out_strides[2];
      for (int i = 0; i < half; i += LANES) {
        const Floats left = load_part(x, i, half), right = load_part(x + half, i, half);
        store_part(out, multiply_add(right, way * load_part(sine, i, half), left * load_part(cosine, i, half)), i, half);
        store_part(out + half, multiply_add(left, way * load_part(sine + half, i, half), right * load_part(cosine + half, i, half)), i, half);
      }
    }
  }
}

// Activations, and what they multiply

struct Curve {
  Floats value, slope;
};

template <int KIND>
inline Curve curve(const Floats& x) {
  const Floats one = splat(1), half = splat(0.5f);
  if (KIND == SILU) {
    const Floats gate = logistic(x), value = x * gate;
    return {value, multiply_add(value, one - gate, gate)};
  }
  if (KIND == GELU) {
    const Floats share = half * (one + error_function(x * splat(0.70710678118654752f)));
    return {x * share, multiply_add(x * splat(0.39894228040143268f), exponential(x * x * splat(-0.5f)), share)};
  }
  if (KIND == GELU_TANH) {  // (1 + tanh(u)) / 2 is the logistic of 2 u, which loses no digits where tanh is near 1 or -1
    const Floats square = x * x, c = splat(1.59576912160573072f), e = exponential(splat(0) - c * x * multiply_add(splat(0.044715f), square, one));
    const Floats share = one / (one + e), change = share * e * share * c * multiply_add(splat(0.134145f), square, one);
    return {x * share, multiply_add(x, change, share)};
  }
  Curve out;  // RELU
  for (int i = 0; i < PARTS; i++) {
    out.value.part[i] = x.part[i] > 0 ? x.part[i] : x.part[i] != x.part[i] ? x.part[i] : NativeFloat{};
    out.slope.part[i] = x.part[i] > 0 ? 1 - NativeFloat{} : NativeFloat{};
  }
  return out;
}

template <class T, int KIND>
void gate_part(const Gate& g, int64_t first, int64_t last) {
  const T *left = (const T*)g.left + first, *right = g.right ? (const T*)g.right + first : nullptr;
  const T* gradient = g.gradient ? (const T*)g.gradient + first : nullptr;
  T *out = (T*)g.out + first, *by_left = (T*)g.by_left + first, *by_right = (T*)g.by_right + first;
  const int count = (int)(last - first);
  for (int i = 0; i < count; i += LANES) {
    const Curve c = curve<KIND>(load_part(left, i, count));
    const Floats other = right ? load_part(right, i, count) : splat(1);
    if (gradient) {
      const Floats by = load_part(gradient, i, count);
      store_part(by_left, by * other * c.slope, i, count);
      if (right) store_part(by_right, by * c.value, i, count);
    }
    store_part(out, c.value * other, i, count);
  }
}

constexpr int64_t AT_ONCE = 1 << 14;

// f(first, last) for this thread's part of so many numbers, in pieces that begin at multiples of AT_ONCE.
template <class F>
void in_pieces(int64_t count, Team team, const F& f) {
  const int64_t pieces = (count + AT_ONCE - 1) / AT_ONCE;
  for (int64_t i = pieces * team.thread / team.threads; i < pieces * (team.thread + 1) / team.threads; i++)
    f(i, i * AT_ONCE, (i + 1) * AT_ONCE < count ? (i + 1) * AT_ONCE : count);
}

template <class T>
void gate_rows(const Gate& g, Team team) {
  in_pieces(g.count, team, [&](int64_t, int64_t first, int64_t last) {
    switch (g.activation) {
      case SILU: return gate_part<T, SILU>(g, first, last);
      case GELU: return gate_part<T, GELU>(g, first, last);
      case GELU_TANH: return gate_part<T, GELU_TANH>(g, first, last);
      default: return gate_part<T, RELU>(g, first, last);
    }
  });
}

// Cross-entropy: the gradient by a row of scores takes its place.

template <class T>
void loss_rows(const LossRows& l, Team team) {
  const int width = l.width;
  const Range mine = share(l.rows, team.thread, team.threads);
  const float even = l.smoothing / (float)width;
  const auto score = [&](const T* row, int i) {
    const Floats x = load_part(row, i, width);
    return l.bias ? x + load_part(l.bias, i, width) : x;
  };
  const auto one = [&](const T* row, int i) {
    float all[LANES];
    store(all, score(row, i / LANES * LANES));
    return all[i % LANES];
  };
  for (int r = mine.first; r < mine.last; r++) {
    T* row = (T*)l.scores + (size_t)r * width;
    const int label = (int)l.labels[r], whole = width / LANES * LANES;
    Floats most = splat(one(row, 0)), total = splat(0);
    for (int i = 0; i < whole; i += LANES) most = larger(score(row, i), most);
    for (int i = whole; i < width; i++) most = larger(splat(one(row, i)), most);
    const Floats top = splat(highest(most));
    if (l.smoothing != 0)
      for (int i = 0; i < width; i += LANES) total = total + cut(score(row, i), width - i);
    const float mean = sum(total) / (float)width, chosen = one(row, label);
    total = splat(0);
    for (int i = 0; i < width; i += LANES) total = total + cut(exponential(score(row, i) - top), width - i);
    const float part = sum(total), log_sum = logf(part) + highest(top), factor = (1 + 2 * l.z_loss * log_sum) / part;
    l.loss[r] = log_sum - (1 - l.smoothing) * chosen - l.smoothing * mean + l.z_loss * log_sum * log_sum;
    float at_label[LANES];
    store(at_label, exponential(splat(chosen) - top) * splat(factor) - splat(even + 1 - l.smoothing));
    for (int i = 0; i < width; i += LANES) store_part(row, exponential(score(row, i) - top) * splat(factor) - splat(even), i, width);
    store_part(row + label, load_some(at_label, 1), 0, 1);
  }
}

// The optimizer

// The sum of squares of each piece, so that their sum does not depend on the number of threads.
template <class T>
void squares(const T* x, int64_t count, double* pieces, Team team) {
  in_pieces(count, team, [&](int64_t piece, int64_t first, int64_t last) {
    const int width = (int)(last - first);
    Floats total[4] = {splat(0), splat(0), splat(0), splat(0)};
    for (int i = 0; i < width; i += LANES) {
      const Floats value = load_part(x + first, i, width);
      total[i / LANES % 4] = multiply_add(value, value, total[i / LANES % 4]);
    }
    double all = 0;
    for (const Floats& each : total) all += sum(each);
    pieces[piece] = all;
  });
}

// AdamW (Loshchilov & Hutter 2019), as torch has it.
template <class T>
void adamw(const AdamW& a, Team team) {
  const Floats keep = splat(1 - a.rate * a.decay), share1 = splat(1 - a.beta1), beta2 = splat(a.beta2), share2 = splat(1 - a.beta2);
  const Floats root = splat(1 / sqrtf(a.correction2)), eps = splat(a.eps), step = splat(-a.rate / a.correction1), scale = splat(a.scale);
  in_pieces(a.count, team, [&](int64_t, int64_t first, int64_t last) {
    float *values = a.values + first, *mean = a.mean + first, *square = a.square + first;
    const T* gradient = (const T*)a.gradient + first;
    const int count = (int)(last - first);
    for (int i = 0; i < count; i += LANES) {
      const Floats g = load_part(gradient, i, count) * scale, m = load_part(mean, i, count);
      const Floats new_mean = multiply_add(share1, g - m, m);
      const Floats new_square = multiply_add(load_part(square, i, count), beta2, share2 * g * g);
      store_part(mean, new_mean, i, count);
      store_part(square, new_square, i, count);
      const Floats way = new_mean / multiply_add(square_root(new_square), root, eps);
      store_part(values, multiply_add(step, way, load_part(values, i, count) * keep), i, count);
    }
  });
}

}  // namespace
