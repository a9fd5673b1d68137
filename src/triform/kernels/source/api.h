// What Python hands over: plain data whose memory Python owns. `native.py` has the same structures; `triform_sizes` lets it check.
#pragma once

#include <stdint.h>

enum Kind { NONE = 0, F32 = 1, BF16 = 2, Q8 = 3, Q4 = 4 };
enum NormKind { NO_NORM = 0, LAYER_NORM = 1, RMS_NORM = 2 };
enum Placement { PRE = 0, POST = 1, SANDWICH = 2 };
enum Activation { IDENTITY = 0, RELU = 1, GELU = 2, GELU_TANH = 3, QUICK_GELU = 4, SILU = 5, TANH = 6 };

// A linear layer: `rows` outputs of `columns` inputs, in panels of 16 rows (see products.h), and a bias in fp32 or none.
struct Matrix {
  const void* data;
  const float* bias;
  int64_t bytes;
  int32_t kind, rows, columns, reserved;
};

struct Norm {
  const float* weight;  // whole scales, a unit offset added
  const float* bias;    // or none
  float eps;
  int32_t kind;
};

struct Attention {
  Matrix query, key, value, out;
  Norm query_norm, key_norm;
  const float* cosines;  // (turns, head_width / 2), or none where nothing is rotated
  const float* sines;
  const float* bias;  // (heads, distances): added to the score of a key so far back; farther ones take the last
  int64_t turns, distances;
  int32_t heads, kv_heads, head_width, window;  // window 0: all
  float scale;
  int32_t reserved;
};

struct Layer {
  Attention self, cross;  // cross.heads 0: none
  Matrix gate, up, down;  // gate.kind NONE: not gated
  Norm norms[3], norms_out[3];  // of attention, cross-attention and feed-forward
  int32_t placement, activation;
};

struct Program {
  const Layer* layers;
  Matrix table;            // the tokens' vectors
  const float* positions;  // (places, width), or none
  const float* segment;    // (width,) added to every token, or none
  int64_t places;
  Norm input_norm, norm;
  Matrix dense, head;  // dense.kind NONE: none
  Norm head_norm;
  float embed_scale, head_scale;
  int32_t depth, width, activation, reserved;
};

// One pass: tokens of any slots. Tokens of one slot follow each other, and each goes to its place in the slot.
struct Batch {
  const int64_t* tokens;
  const int64_t* slots;
  const int64_t* places;
  const int64_t* memory_lengths;  // of every slot
  void* const* keys;              // a pointer a layer, to (slots, kv_heads, capacity, head_width)
  void* const* values;
  void* const* cross_keys;
  void* const* cross_values;
  const int32_t* wanted;  // rows whose scores are asked for
  float* scores;          // (wanted_rows, head.rows)
  void* workspace;
  int64_t workspace_bytes, capacity, source_capacity;
  int32_t rows, wanted_rows, slot_count, cache_kind, threads, reserved;
};
