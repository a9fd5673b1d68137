// One variant: compiled several times, with the flags of a processor and -DVARIANT=its name.

#include "attending.h"
#include "step.h"
#include "training.h"
#include "variants.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

namespace {

size_t workspace(const Program* program, const Batch* batch, int threads) { return lay_out(*program, *batch, threads).bytes; }

void step(const Program* program, const Batch* batch, Team team, int together) {
  Pass(*program, *batch, (Barrier*)team.barrier, team.thread, team.threads, together != 0).run();
}

void product(const Matrix* m, const float* x, int rows, float* y, char* workspace, Team team) {
  const size_t stride = prepared_bytes(m->kind, m->columns);
  const Range mine = share(rows, team.thread, team.threads);
  for (int r = mine.first; r < mine.last; r++) prepare(m->kind, x + (size_t)r * m->columns, m->columns, 0, m->columns, workspace + r * stride);
  meet((Barrier*)team.barrier, team.threads);
  multiply(*m, share(panels_of(*m), team.thread, team.threads), workspace, stride, rows,
           [&](int r, int column, const Floats& value) { store_outputs(y + (size_t)r * m->rows, value, column, m->rows); });
}

void matrix_rows(const Matrix* m, const int64_t* ids, int64_t count, float* to, Team team) {
  for (int64_t i = team.thread; i < count; i += team.threads) matrix_row(*m, ids[i], to + i * m->columns);
}

float read(const float* from, int64_t count, Team team) {
  const int64_t first = count / 128 * team.thread / team.threads * 128, last = count / 128 * (team.thread + 1) / team.threads * 128;
  Floats total[8] = {};
  for (int64_t i = first; i < last; i += 8 * LANES)
    for (int k = 0; k < 8; k++) total[k] = total[k] + load(from + i + k * LANES);
  float all = 0;
  for (int k = 0; k < 8; k++) all += sum(total[k]);
  return all;
}

void norm(const NormRows& n, Team team) {
  if (n.x_kind == BF16) return n.out_kind == BF16 ? norm_rows<uint16_t, uint16_t>(n, team) : norm_rows<uint16_t, float>(n, team);
  n.out_kind == BF16 ? norm_rows<float, uint16_t>(n, team) : norm_rows<float, float>(n, team);
}

void norm_back(const NormRows& n, Team team) {
  if (n.x_kind == BF16) return n.out_kind == BF16 ? norm_rows_back<uint16_t, uint16_t>(n, team) : norm_rows_back<uint16_t, float>(n, team);
  n.out_kind == BF16 ? norm_rows_back<float, uint16_t>(n, team) : norm_rows_back<float, float>(n, team);
}

void turn(const Turn& t, Team team) { t.kind == BF16 ? turn_rows<uint16_t>(t, team) : turn_rows<float>(t, team); }

void gate(const Gate& g, Team team) { g.kind == BF16 ? gate_rows<uint16_t>(g, team) : gate_rows<float>(g, team); }

void loss(const LossRows& l, Team team) { l.kind == BF16 ? loss_rows<uint16_t>(l, team) : loss_rows<float>(l, team); }

size_t attend_bytes(const Attending& a) { return a.kind == BF16 ? Desk<uint16_t>(a, nullptr).bytes : Desk<float>(a, nullptr).bytes; }

void attend(const Attending& a, Team team) { a.kind == BF16 ? Attender<uint16_t>(a, team).run() : Attender<float>(a, team).run(); }

void adamw(const AdamW& a, Team team) { a.kind == BF16 ? adamw<uint16_t>(a, team) : adamw<float>(a, team); }

void squares(const void* x, int kind, int64_t count, double* pieces, Team team) {
  kind == BF16 ? squares((const uint16_t*)x, count, pieces, team) : squares((const float*)x, count, pieces, team);
}

const Variant variant = {
    TEXT(VARIANT), panel_bytes, prepared_bytes, workspace, step, product, matrix_rows, read,
    norm, norm_back, turn, gate, loss, attend_bytes, attend, adamw, squares,
};

}  // namespace

extern "C" const Variant* JOIN(triform_, VARIANT)() { return &variant; }
