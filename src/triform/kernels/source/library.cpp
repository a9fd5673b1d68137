// The functions that Python calls. Everything is checked here before memory is touched; a function returns 0, or 1 and leaves a
// message in `triform_error`.

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "variants.h"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace {

thread_local char message[256];

int fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return 1;
}

// What this processor can run, the fastest first.
struct Variants {
  const Variant* all[4];
};

Variants usable() {
  Variants found = {};
  int count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
  if (avx512 && avx2) found.all[count++] = triform_avx512();
  if (avx2) found.all[count++] = triform_avx2();
#endif
#if defined(__aarch64__)
#if defined(__linux__)
  const unsigned long needed = HWCAP_ASIMDDP | HWCAP_ATOMICS;  // what is compiled for ARMv8.2 meets by the atomics of ARMv8.1
  if ((getauxval(AT_HWCAP) & needed) == needed) found.all[count++] = triform_dotprod();
#elif defined(__APPLE__)
  found.all[count++] = triform_dotprod();
#endif
  found.all[count++] = triform_neon();
#else
  found.all[count++] = triform_plain();
#endif
  return found;
}

const Variant* chosen = nullptr;

const Variant* variant() {
  if (!chosen) chosen = usable().all[0];
  return chosen;
}

constexpr int MOST_THREADS = 1024;
struct alignas(64) Meeting {
  char bytes[64];
};

// f for each thread of a team.
template <class F>
void team_of(int threads, const F& f) {
  Meeting meeting = {};
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    f(Team{&meeting, omp_get_thread_num(), omp_get_num_threads()});
    return;
  }
#endif
  (void)threads;
  f(Team{&meeting, 0, 1});
}

int check_threads(int threads) {
  return threads < 1 || threads > MOST_THREADS ? fail("threads: expected 1 to %d, got %d", MOST_THREADS, threads) : 0;
}

int check_kind(int kind) { return kind != F32 && kind != BF16 ? fail("expected fp32 or bf16, got kind %d", kind) : 0; }

int check_sizes(int64_t rows, int64_t width) {
  return rows < 0 || rows > INT32_MAX || width < 1 ? fail("expected rows and a width, got %lld x %lld", (long long)rows, (long long)width) : 0;
}

int check(const Matrix& m, const char* name, int rows, int columns) {
  if (m.kind < F32 || m.kind > Q4) return fail("%s: expected weights of kind 1 to 4, got %d", name, m.kind);
  if (m.rows < 1 || m.columns < 1 || m.columns > 1 << 24) return fail("%s: expected sizes above zero, got %d x %d", name, m.rows, m.columns);
  if ((rows && m.rows != rows) || (columns && m.columns != columns))
    return fail("%s: expected %d x %d weights, got %d x %d", name, rows, columns, m.rows, m.columns);
  const int64_t need = ((int64_t)m.rows + 15) / 16 * (int64_t)variant()->panel_bytes(m.kind, m.columns);
  if (!m.data || m.bytes < need) return fail("%s: expected %lld bytes, got %lld", name, (long long)need, (long long)m.bytes);
  return 0;
}

int check_norm(const Norm& n, const char* name) {
  if (n.kind < NO_NORM || n.kind > RMS_NORM) return fail("%s: unknown norm %d", name, n.kind);
  return n.kind == RMS_NORM && !n.weight ? fail("%s: expected a weight", name) : 0;
}

int check_attention(const Attention& a, int width, bool cross) {
  const char* name = cross ? "cross-attention" : "attention";
  if (a.heads < 1 || a.kv_heads < 1 || a.heads % a.kv_heads || a.head_width < 1 || a.head_width > 1024 || a.heads > 1 << 16 || a.window < 0)
    return fail("%s: cannot have %d heads of %d, %d of keys, window %d", name, a.heads, a.head_width, a.kv_heads, a.window);
  if (a.cosines && (a.head_width % 2 || !a.sines || a.turns < 1)) return fail("%s: a rotation needs an even width and its tables", name);
  if (a.bias && a.distances < 1) return fail("%s: a bias needs distances", name);
  const int inner = a.heads * a.head_width, shared = a.kv_heads * a.head_width;
  if (check(a.query, "query", inner, width) || check(a.out, "out", width, inner)) return 1;
  if (!cross && (check(a.key, "key", shared, width) || check(a.value, "value", shared, width))) return 1;
  if (!cross && (a.key.kind != a.query.kind || a.value.kind != a.query.kind)) return fail("query, key and value: expected one kind");
  return check_norm(a.query_norm, "query norm") || check_norm(a.key_norm, "key norm");
}

int check_layer(const Layer& layer, int width) {
  if (check_attention(layer.self, width, false)) return 1;
  if (layer.cross.heads && check_attention(layer.cross, width, true)) return 1;
  if (layer.placement < PRE || layer.placement > SANDWICH) return fail("placement: unknown %d", layer.placement);
  if (check(layer.up, "up", 0, width) || check(layer.down, "down", width, layer.up.rows)) return 1;
  if (layer.gate.kind != NONE && (check(layer.gate, "gate", layer.up.rows, width) || layer.gate.kind != layer.up.kind))
    return fail("gate: expected the size and the kind of up");
  for (int i = 0; i < 3; i++)
    if (check_norm(layer.norms[i], "norm") || check_norm(layer.norms_out[i], "norm")) return 1;
  return 0;
}

int check_batch(const Program& p, const Batch& b, int* together) {
  if (b.rows < 1 || b.rows > 1 << 20 || b.wanted_rows < 0 || b.wanted_rows > b.rows) return fail("rows: got %d, %d of them wanted", b.rows, b.wanted_rows);
  if (b.cache_kind != F32 && b.cache_kind != BF16) return fail("the cache: expected fp32 or bf16");
  if (b.capacity < 1 || b.slot_count < 1 || b.capacity > INT32_MAX / 2 || b.source_capacity > INT32_MAX / 2) return fail("the cache: no room");
  for (int i = 0; i < b.wanted_rows; i++)
    if (b.wanted[i] < 0 || b.wanted[i] >= b.rows) return fail("wanted: row %d of %d", b.wanted[i], b.rows);
  for (int r = 0; r < b.rows; r++) {
    if (b.tokens[r] < 0 || b.tokens[r] >= p.table.rows) return fail("tokens: expected ids below %d, got %lld", p.table.rows, (long long)b.tokens[r]);
    if (b.slots[r] < 0 || b.slots[r] >= b.slot_count) return fail("slots: expected numbers below %d, got %lld", b.slot_count, (long long)b.slots[r]);
    if (b.places[r] < 0 || b.places[r] >= b.capacity) return fail("a slot holds %lld tokens and %lld are needed", (long long)b.capacity, (long long)b.places[r] + 1);
    if (p.positions && b.places[r] >= p.places) return fail("there are %lld positions and %lld are needed", (long long)p.places, (long long)b.places[r] + 1);
    *together |= r && b.slots[r] == b.slots[r - 1];
  }
  for (int i = 0; i < p.depth; i++) {
    const Layer& layer = p.layers[i];
    if (!b.keys[i] || !b.values[i]) return fail("layer %d has no cache", i);
    if (layer.cross.heads && (!b.cross_keys[i] || !b.cross_values[i])) return fail("layer %d has no cache of the encoder", i);
    for (int r = 0; r < b.rows; r++) {
      if (layer.self.cosines && b.places[r] >= layer.self.turns) return fail("the rotation's table has %lld places", (long long)layer.self.turns);
      const int64_t memory = layer.cross.heads ? b.memory_lengths[b.slots[r]] : 0;
      if (memory < 0 || memory > b.source_capacity) return fail("the encoder's keys: %lld of %lld", (long long)memory, (long long)b.source_capacity);
    }
  }
  return 0;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

const char* triform_error() { return message; }

const char* triform_variant() { return variant()->name; }

// For tests: another variant that this processor can run.
int triform_use(const char* name) {
  for (const Variant* found : usable().all)
    if (found && !strcmp(found->name, name)) {
      chosen = found;
      return 0;
    }
  return fail("variant: this processor cannot run %s", name);
}

void triform_sizes(int64_t* to) {
  const size_t all[] = {sizeof(Matrix), sizeof(Norm), sizeof(Attention), sizeof(Layer), sizeof(Program), sizeof(Batch),
                        sizeof(NormRows), sizeof(Turn), sizeof(Gate), sizeof(LossRows), sizeof(AdamW), sizeof(Attending)};
  for (int i = 0; i < 12; i++) to[i] = (int64_t)all[i];
}

int64_t triform_panel_bytes(int kind, int columns) { return kind < F32 || kind > Q4 || columns < 1 ? -1 : (int64_t)variant()->panel_bytes(kind, columns); }

int triform_check(const Program* p) {
  if (!p->layers || p->depth < 1 || p->width < 1) return fail("expected layers and a width");
  if (check(p->table, "table", 0, p->width) || check(p->head, "head", 0, p->width)) return 1;
  if (p->dense.kind != NONE && check(p->dense, "dense", p->width, p->width)) return 1;
  if (p->positions && p->places < 1) return fail("positions: expected places");
  if (check_norm(p->input_norm, "norm") || check_norm(p->norm, "norm") || check_norm(p->head_norm, "norm")) return 1;
  for (int i = 0; i < p->depth; i++)
    if (check_layer(p->layers[i], p->width)) return 1;
  return 0;
}

int64_t triform_workspace(const Program* p, const Batch* b) { return check_threads(b->threads) ? -1 : (int64_t)variant()->workspace(p, b, b->threads); }

// The program has passed `triform_check`.
int triform_step(const Program* p, const Batch* b) {
  int together = 0;
  if (check_threads(b->threads) || check_batch(*p, *b, &together)) return 1;
  if (!b->workspace || b->workspace_bytes < (int64_t)variant()->workspace(p, b, b->threads)) return fail("workspace: too small");
  team_of(b->threads, [&](Team team) { variant()->step(p, b, team, together); });
  return 0;
}

int64_t triform_product_workspace(const Matrix* m, int64_t rows) { return (int64_t)variant()->prepared_bytes(m->kind, m->columns) * rows; }

// y (rows, m.rows) of x (rows, m.columns).
int triform_product(const Matrix* m, const float* x, int64_t rows, float* y, char* workspace, int64_t workspace_bytes, int threads) {
  if (check_threads(threads) || check(*m, "weights", 0, 0)) return 1;
  if (rows < 1 || rows > INT32_MAX || !x || !y) return fail("rows: expected 1 or more, got %lld", (long long)rows);
  if (!workspace || workspace_bytes < triform_product_workspace(m, rows)) return fail("workspace: too small");
  team_of(threads, [&](Team team) { variant()->product(m, x, (int)rows, y, workspace, team); });
  return 0;
}

// Rows of the matrix as fp32, (count, m.columns).
int triform_rows(const Matrix* m, const int64_t* ids, int64_t count, float* to, int threads) {
  if (check_threads(threads) || check(*m, "table", 0, 0)) return 1;
  for (int64_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= m->rows) return fail("tokens: expected ids below %d, got %lld", m->rows, (long long)ids[i]);
  team_of(threads, [&](Team team) { variant()->rows(m, ids, count, to, team); });
  return 0;
}

// Reads memory and does nothing else, to learn how fast that can be.
float triform_read(const float* from, int64_t count, int threads) {
  float total[MOST_THREADS] = {};
  if (check_threads(threads)) return 0;
  team_of(threads, [&](Team team) { total[team.thread] = variant()->read(from, count, team); });
  float all = 0;
  for (float part : total) all += part;
  return all;
}

// Training: what Python hands over are whole tensors of torch's.

int triform_norm(const NormRows* n, int threads) {
  if (check_threads(threads) || check_kind(n->x_kind) || check_kind(n->out_kind) || check_sizes(n->rows, n->width)) return 1;
  team_of(threads, [&](Team team) { n->gradient ? variant()->norm_back(*n, team) : variant()->norm(*n, team); });
  return 0;
}

int triform_turn(const Turn* t, int threads) {
  if (check_threads(threads) || check_kind(t->kind) || check_sizes((int64_t)t->batch * t->tokens, t->width)) return 1;
  if (t->width % 2) return fail("a rotation needs an even width");
  team_of(threads, [&](Team team) { variant()->turn(*t, team); });
  return 0;
}

int triform_gate(const Gate* g, int threads) {
  if (check_threads(threads) || check_kind(g->kind)) return 1;
  if (g->activation != RELU && g->activation != GELU && g->activation != GELU_TANH && g->activation != SILU)
    return fail("activation: %d has no derivative here", g->activation);
  team_of(threads, [&](Team team) { variant()->gate(*g, team); });
  return 0;
}

int triform_loss(const LossRows* l, int threads) {
  if (check_threads(threads) || check_kind(l->kind) || check_sizes(l->rows, l->width)) return 1;
  for (int i = 0; i < l->rows; i++)
    if (l->labels[i] < 0 || l->labels[i] >= l->width) return fail("labels: expected numbers below %d, got %lld", l->width, (long long)l->labels[i]);
  team_of(threads, [&](Team team) { variant()->loss(*l, team); });
  return 0;
}

int64_t triform_attend_bytes(const Attending* a) { return (int64_t)variant()->attend_bytes(*a); }

int triform_attend(const Attending* a, int threads) {
  if (check_threads(threads) || check_kind(a->kind) || check_sizes((int64_t)a->batch * a->queries, a->width)) return 1;
  if (a->keys < 1 || a->groups < 1 || a->heads % a->groups) return fail("attention: cannot have %d heads over %d, %d keys", a->heads, a->groups, a->keys);
  if (a->kind == BF16 && a->width % 2) return fail("attention: expected an even width of a head, got %d", a->width);
  if (a->causal && a->queries != a->keys) return fail("attention: expected as many keys as queries, got %d and %d", a->keys, a->queries);
  if (a->room_bytes < triform_attend_bytes(a)) return fail("room: too small");
  team_of(threads, [&](Team team) { variant()->attend(*a, team); });
  return 0;
}

int triform_adamw(const AdamW* a, int threads) {
  if (check_threads(threads) || check_kind(a->kind)) return 1;
  team_of(threads, [&](Team team) { variant()->adamw(*a, team); });
  return 0;
}

// The sum of squares of `count` numbers; `pieces` has room for one of every 16,384.
double triform_squares(const void* x, int kind, int64_t count, double* pieces, int threads) {
  if (check_threads(threads) || check_kind(kind)) return -1;
  team_of(threads, [&](Team team) { variant()->squares(x, kind, count, pieces, team); });
  double all = 0;
  for (int64_t i = 0; i < (count + 16383) / 16384; i++) all += pieces[i];
  return all;
}
}
#pragma GCC visibility pop
