/* Products of bfloat16 by the AMX tile unit of the backward: what backward.h computes with.
 *
 * dv and dk sum over rows, of which one block has too few to be worth loading their tiles for. So
 * weights of SLOTS blocks are kept, and multiplied together.
 */

#define TILE_KEYS 128
#define CHUNK_KEYS (4 * TILE_KEYS)
#define SLOTS 4

typedef struct {
    uint16_t *k, *v;            /* [CHUNK_KEYS][columns_q], [CHUNK_KEYS][columns_v] */
    uint16_t *k_turned;         /* [columns_q][CHUNK_KEYS] */
    uint16_t *q, *g;            /* in pairs of columns */
    uint16_t *q_rows, *g_rows;  /* [SLOTS][columns / 16] tiles in pairs of rows */
    uint16_t *p, *du;           /* [CHUNK_KEYS][SLOTS][LANES] */
    uint16_t *du_pairs;         /* of one tile of keys, in pairs of keys */
    uint16_t *lines;
    float *dk, *dv, *dq_turned; /* [CHUNK_KEYS][columns]; [columns_q][LANES] */
    float *s, *dp, *slope;      /* [TILE_KEYS][LANES] */
    float *lse, *delta;         /* [LANES] */
    float *row;                 /* one row of grad_out and of out */
    int64_t columns_q, columns_v;
    int64_t slot, low, high;    /* blocks kept, and the keys [low, high) that they saw */
    int finite;
} backward_tiles;

static int64_t lay_out_backward(const pa_forward_args *f, float *memory, backward_tiles *t) {
    float *at = memory;
    const int64_t cq = round_up(f->head_dim, 32), cv = round_up(f->head_dim_v, 32);
    t->columns_q = cq, t->columns_v = cv;
    t->s = at, at += TILE_KEYS * LANES;
    t->dp = at, at += TILE_KEYS * LANES;
    t->slope = at, at += TILE_KEYS * LANES;
    t->lse = at, at += LANES;
    t->delta = at, at += LANES;
    t->row = at, at += 2 * cv;
    t->dk = at, at += CHUNK_KEYS * cq;
    t->dv = at, at += CHUNK_KEYS * cv;
    t->dq_turned = at, at += LANES * cq;
    t->k = (uint16_t *)at, at += CHUNK_KEYS * cq / 2;
    t->v = (uint16_t *)at, at += CHUNK_KEYS * cv / 2;
    t->k_turned = (uint16_t *)at, at += CHUNK_KEYS * cq / 2;
    t->q = (uint16_t *)at, at += LANES * cq / 2;
    t->g = (uint16_t *)at, at += LANES * cv / 2;
    t->q_rows = (uint16_t *)at, at += SLOTS * LANES * cq / 2;
    t->g_rows = (uint16_t *)at, at += SLOTS * LANES * cv / 2;
    t->p = (uint16_t *)at, at += CHUNK_KEYS * SLOTS * LANES / 2;
    t->du = (uint16_t *)at, at += CHUNK_KEYS * SLOTS * LANES / 2;
    t->du_pairs = (uint16_t *)at, at += TILE_KEYS * LANES / 2;
    t->lines = (uint16_t *)at, at += LANES * (cq > cv ? cq : cv) / 2;
    return at - memory;
}

static void start_slots(backward_tiles *t) {
    t->slot = 0;
    t->low = CHUNK_KEYS;
    t->high = 0;
}

static void pack_chunk(const block *w, backward_tiles *t, int64_t first_key, int64_t count) {
    const pa_forward_args *f = w->f;
    const int64_t padded = round_up(count, 32), cq = t->columns_q, cv = t->columns_v;
    memset(t->k + count * cq, 0, (padded - count) * cq * 2);
    memset(t->v + count * cv, 0, (padded - count) * cv * 2);
    for (int64_t j = 0; j < count; j++) {
        int64_t k, v;
        key_offsets(f, w->b, w->kv_head, first_key + j, &k, &v);
        copy_line(t->k + j * cq, f->k, k, f->k_dim, f->head_dim, cq);
        copy_line(t->v + j * cv, f->v, v, f->v_dim, f->head_dim_v, cv);
    }
    t->finite &= line_is_finite(t->k, count * cq) & line_is_finite(t->v, count * cv);
    for (int64_t j = 0; j < padded; j += 32)
        transpose_lines(t->k_turned, CHUNK_KEYS, j, t->k + j * cq, cq);
    memset(t->dk, 0, padded * cq * sizeof(float));
    memset(t->dv, 0, padded * cv * sizeof(float));
    start_slots(t);
}

static void pair_rows(backward_tiles *t, const uint16_t *lines, int64_t columns, uint16_t *to) {
    t->finite &= line_is_finite(lines, LANES * columns);
    for (int64_t d = 0; d < columns; d += 16, to += TILE) {
        __m512i r[16];
        pair_lines(r, lines + d, columns);
        UNROLL for (int x = 0; x < 16; x++) _mm512_storeu_si512(to + x * 32, r[x]);
    }
}

static void pack_rows(const pa_backward_args *a, const block *w, backward_tiles *t) {
    const pa_forward_args *f = a->f;
    const row_source q = {f->q, w->sequence->q, f->q_row, f->q_head, f->q_dim,
                          f->head_dim, t->columns_q};
    const row_source g = {a->grad_out, a->gradients[w->b].out, a->g_row, a->g_head, a->g_dim,
                          f->head_dim_v, t->columns_v};
    pair_columns(w, &q, t->lines, t->q);
    pair_rows(t, t->lines, t->columns_q, t->q_rows + t->slot * LANES * t->columns_q);
    pair_columns(w, &g, t->lines, t->g);
    pair_rows(t, t->lines, t->columns_v, t->g_rows + t->slot * LANES * t->columns_v);
    for (int64_t j = 0; j < CHUNK_KEYS; j++) {
        memset(t->p + (j * SLOTS + t->slot) * LANES, 0, LANES * 2);
        memset(t->du + (j * SLOTS + t->slot) * LANES, 0, LANES * 2);
    }
    memset(t->dq_turned, 0, t->columns_q * LANES * sizeof(float));
}

static void multiply_pairs(const pa_forward_args *f, backward_tiles *t, int64_t tile, int64_t from,
                           int64_t to) {
    (void)f;
    multiply_rows(t->s, t->k + tile * t->columns_q, t->q, t->columns_q, from, to);
    multiply_rows(t->dp, t->v + tile * t->columns_v, t->g, t->columns_v, from, to);
}

/* weights [keys][LANES] of keys [from, to), rounded, into this block's slot. */
static void keep_weights(const backward_tiles *t, uint16_t *kept, const float *weights,
                         int64_t from, int64_t to) {
    for (int64_t j = from; j < to; j++) {
        const float *at = weights + j * LANES;
        __m512i line = (__m512i)_mm512_cvtne2ps_pbh(v_load(at + 16), v_load(at));
        _mm512_storeu_si512(kept + (j * SLOTS + t->slot) * LANES, line);
    }
}

static void add_gradients(backward_tiles *t, int64_t tile, int64_t from, int64_t to, float *dq) {
    const int64_t first = from / 32 * 32, steps = round_up(to, 32) / 32 - from / 32;
    (void)dq;
    keep_weights(t, t->p + tile * SLOTS * LANES, t->s, from, to);
    keep_weights(t, t->du + tile * SLOTS * LANES, t->dp, from, to);
    if (tile + first < t->low) t->low = tile + first;
    if (tile + to > t->high) t->high = tile + to;
    clear_around(t->dp, from, to);
    pair_weights(t->du_pairs, t->dp, from, to);
    for (int64_t d = 0; d < t->columns_q; d += 32) {
        const tile_product p = {t->k_turned + d * CHUNK_KEYS + tile + first,
                                t->du_pairs + first / 32 * 2 * TILE, CHUNK_KEYS * 2, 32, TILE,
                                2 * TILE, steps};
        multiply_tiles(&p, t->dq_turned + d * LANES, LANES, 1);
    }
}

/* dv and dk from the kept blocks. */
static void finish_chunk_gradients(backward_tiles *t) {
    for (int side = 0; side < 2; side++) {
        const int64_t columns = side ? t->columns_q : t->columns_v;
        const uint16_t *weights = side ? t->du : t->p, *rows = side ? t->q_rows : t->g_rows;
        float *c = side ? t->dk : t->dv;
        for (int64_t j = t->low; j < t->high; j += 32)
            for (int64_t d = 0; d < columns; d += 32) {
                const tile_product p = {weights + j * SLOTS * LANES, rows + d / 16 * TILE,
                                        SLOTS * LANES * 2, LANES, TILE, LANES * columns, t->slot};
                multiply_tiles(&p, c + j * columns + d, columns, 1);
            }
    }
    start_slots(t);
}

/* Add dq, which was summed columns down, and keep the block for dv and dk. */
static void finish_block_gradients(backward_tiles *t, float *dq) {
    for (int64_t d = 0; d < t->columns_q; d += 16)
        for (int64_t x = 0; x < LANES; x += 16) {
            __m512i r[16];
            UNROLL for (int i = 0; i < 16; i++)
                r[i] = _mm512_loadu_si512(t->dq_turned + (d + i) * LANES + x);
            transpose_16x16(r);
            UNROLL for (int i = 0; i < 16; i++) {
                float *row = dq + (x + i) * t->columns_q + d;
                v_store(row, v_add(v_load(row), _mm512_castsi512_ps(r[i])));
            }
        }
    if (++t->slot == SLOTS) finish_chunk_gradients(t);
}

static const float *dk_row(backward_tiles *t, int64_t key) { return t->dk + key * t->columns_q; }
static const float *dv_row(backward_tiles *t, int64_t key) { return t->dv + key * t->columns_v; }
