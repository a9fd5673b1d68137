// What each variant gives: the same functions, compiled for other processors.
#pragma once

#include <stddef.h>

#include "api.h"

struct Team {
  void* barrier;
  int thread, threads;
};

struct Variant {
  const char* name;
  size_t (*panel_bytes)(int kind, int columns);
  size_t (*prepared_bytes)(int kind, int columns);
  size_t (*workspace)(const Program*, const Batch*, int threads);
  void (*step)(const Program*, const Batch*, Team, int together);
  void (*product)(const Matrix*, const float* x, int rows, float* y, char* workspace, Team);
  void (*rows)(const Matrix*, const int64_t* ids, int64_t count, float* to, Team);
  float (*read)(const float* from, int64_t count, Team);
  void (*norm)(const NormRows&, Team);
  void (*norm_back)(const NormRows&, Team);
  void (*turn)(const Turn&, Team);
  void (*gate)(const Gate&, Team);
  void (*loss)(const LossRows&, Team);
  size_t (*attend_bytes)(const Attending&);
  void (*attend)(const Attending&, Team);
  void (*adamw)(const AdamW&, Team);
  void (*squares)(const void* x, int kind, int64_t count, double* pieces, Team);
};

// One object each.
extern "C" {
#if defined(__x86_64__)
const Variant* triform_avx2();
const Variant* triform_avx512();
#endif
#if defined(__aarch64__)
const Variant* triform_neon();
const Variant* triform_dotprod();
#else
const Variant* triform_plain();
#endif
}
