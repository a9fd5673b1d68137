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

// Training (see training.h). Kinds are F32 or BF16.

struct NormRows {
  const void *x, *gradient;
  void *out, *by_x;
  const float *weight, *bias;
  float *mean, *inverse;         // a number a row, from the forward pass
  float *by_weight, *by_bias;    // (threads, width)
  int32_t rows, width, x_kind, out_kind, kind;
  float eps, offset;             // of the weight
  int32_t reserved;
};

struct Turn {
  const void* x;
  void* out;
  const float *cosine, *sine;
  int64_t x_strides[3], out_strides[3], turn_strides[2];  // of batch, heads and tokens; of batch and tokens
  int32_t batch, heads, tokens, width, kind, back;
};

struct Gate {
  const void *left, *right, *gradient;  // right: none for 1; gradient: none in the forward pass
  void *out, *by_left, *by_right;
  int64_t count;
  int32_t activation, kind;
};

struct LossRows {
  void* scores;
  const float* bias;
  const int64_t* labels;
  float* loss;
  int32_t rows, width, kind;
  float z_loss, smoothing;
  int32_t reserved;
};

struct AdamW {
  const void* gradient;
  float *values, *mean, *square;
  int64_t count;
  float rate, decay, beta1, beta2, eps, correction1, correction2, scale;  // corrections: 1 - beta^step
  int32_t kind, reserved;
};

enum MaskKind { NO_MASK = 0, SEEN = 1, SCORES = 2 };  // bytes, 0 where a key is not seen; or numbers to add

struct Attending {
  const void *query, *key, *value, *mask, *gradient;  // gradient: none in the forward pass
  void *out, *by_query, *by_key, *by_value;           // gradients lie as what they are of, `gradient` as `out`
  float* by_mask;                                     // (batch, or 1 where the mask has one; heads, queries, keys), zeros to begin with
  void* room;
  int64_t room_bytes;  // of each thread
  int64_t query_strides[3], key_strides[3], value_strides[3], out_strides[3], mask_strides[3];  // of batch, heads and tokens
  int32_t batch, heads, groups, queries, keys, width, kind, mask_kind, causal;
  float scale;
};
