// What is done to a row by itself: norms and activations.
#pragma once

#include "products.h"

namespace {

// to may be x.
inline void normalize(const Norm& norm, const float* x, int width, float* to) {
  if (norm.kind == NO_NORM) {
    if (to != x) memcpy(to, x, (size_t)width * 4);
    return;
  }
  const int whole = width / LANES * LANES;
  float mean = 0, squares = 0;
  if (norm.kind == LAYER_NORM) {
    Floats total = splat(0);
    for (int i = 0; i < whole; i += LANES) total = total + load(x + i);
    mean = sum(total);
    for (int i = whole; i < width; i++) mean += x[i];
    mean /= (float)width;
  }
  const Floats middle = splat(mean);
  Floats total = splat(0);
  for (int i = 0; i < whole; i += LANES) {
    const Floats off = load(x + i) - middle;
    total = multiply_add(off, off, total);
  }
  squares = sum(total);
  for (int i = whole; i < width; i++) squares += (x[i] - mean) * (x[i] - mean);
  const float scale = 1 / sqrtf(squares / (float)width + norm.eps);
  for (int i = 0; i < width; i += LANES) {
    Floats value = (load_outputs(x, i, width) - middle) * splat(scale);
    if (norm.weight) value = value * load_outputs(norm.weight, i, width);
    if (norm.bias) value = value + load_outputs(norm.bias, i, width);
    store_outputs(to, value, i, width);
  }
}

inline Floats activate(int kind, const Floats& x) {
  switch (kind) {
    case RELU: return at_least(x, 0);
    case GELU: return splat(0.5f) * x * (splat(1) + error_function(x * splat(0.70710678118654752f)));
    case GELU_TANH: {
      const Floats inner = splat(0.79788456080286536f) * multiply_add(splat(0.044715f) * x * x, x, x);
      return splat(0.5f) * x * (splat(1) + hyperbolic_tangent(inner));
    }
    case QUICK_GELU: return x * logistic(splat(1.702f) * x);
    case SILU: return x * logistic(x);
    case TANH: return hyperbolic_tangent(x);
    default: return x;
  }
}

inline void add(float* to, const float* x, int width) {
  for (int i = 0; i < width; i += LANES) store_outputs(to, load_outputs(to, i, width) + load_outputs(x, i, width), i, width);
}

inline void scale(float* x, float factor, int width) {
  for (int i = 0; i < width; i += LANES) store_outputs(x, load_outputs(x, i, width) * splat(factor), i, width);
}

}  // namespace
