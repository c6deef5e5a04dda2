/* Products in float32 of the backward: what backward.h computes with. */

/* Keys per tile and per chunk: whole numbers of both row counts of gemm.h. */
#define TILE_KEYS 144
#define CHUNK_KEYS (4 * TILE_KEYS)

typedef struct {
    float *k, *v;        /* [CHUNK_KEYS][head_dim], [CHUNK_KEYS][head_dim_v] */
    float *k_panels;     /* [panels][CHUNK_KEYS][PANEL] */
    float *dk, *dv;      /* [CHUNK_KEYS][columns_q], [CHUNK_KEYS][columns_v] */
    float *q, *g;        /* [head_dim][LANES], [head_dim_v][LANES] */
    float *q_panels, *g_panels; /* [panels][LANES][PANEL] */
    float *s, *dp, *slope;      /* [TILE_KEYS][LANES] */
    float *lse, *delta;  /* [LANES] */
    float *row;          /* one row of q, k or v, or of grad_out and out */
    int64_t columns_q, columns_v;
    int finite;          /* whether all that was packed is */
} backward_tiles;

static int64_t lay_out_backward(const pa_forward_args *f, float *memory, backward_tiles *t) {
    float *at = memory;
    const int64_t cq = round_up(f->head_dim, PANEL), cv = round_up(f->head_dim_v, PANEL);
    t->columns_q = cq, t->columns_v = cv;
    t->s = at, at += TILE_KEYS * LANES;
    t->dp = at, at += TILE_KEYS * LANES;
    t->slope = at, at += TILE_KEYS * LANES;
    t->lse = at, at += LANES;
    t->delta = at, at += LANES;
    t->row = at, at += cq > 2 * cv ? cq : 2 * cv;
    t->k_panels = at, at += CHUNK_KEYS * cq;
    t->dk = at, at += CHUNK_KEYS * cq;
    t->dv = at, at += CHUNK_KEYS * cv;
    t->q_panels = at, at += LANES * cq;
    t->g_panels = at, at += LANES * cv;
    t->q = at, at += LANES * f->head_dim;
    t->g = at, at += LANES * f->head_dim_v;
    t->k = at, at += CHUNK_KEYS * f->head_dim;
    t->v = at, at += CHUNK_KEYS * f->head_dim_v;
    return at - memory;
}

/* One row of a [.., count] operand in t->row, zeros up to whole panels. */
static void fetch(backward_tiles *t, const void *from, int64_t dtype, int64_t at, int64_t step,
                  int64_t count, int64_t columns) {
    load_row(t->row, from, dtype, at, step, count);
    t->finite &= row_is_finite(t->row, count);
    for (int64_t d = count; d < columns; d++) t->row[d] = 0.0f;
}

static void pack_chunk(const block *w, backward_tiles *t, int64_t first_key, int64_t count) {
    const pa_forward_args *f = w->f;
    const int64_t padded = round_up(count, TILE_KEYS);
    for (int64_t j = 0; j < count; j++) {
        int64_t k, v;
        key_offsets(f, w->b, w->kv_head, first_key + j, &k, &v);
        fetch(t, f->v, f->kv_dtype, v, f->v_dim, f->head_dim_v, t->columns_v);
        memcpy(t->v + j * f->head_dim_v, t->row, f->head_dim_v * sizeof(float));
        fetch(t, f->k, f->kv_dtype, k, f->k_dim, f->head_dim, t->columns_q);
        memcpy(t->k + j * f->head_dim, t->row, f->head_dim * sizeof(float));
        spread(t->k_panels, CHUNK_KEYS, j, t->row, t->columns_q);
    }
    memset(t->row, 0, t->columns_q * sizeof(float));
    for (int64_t j = count; j < padded; j++)
        spread(t->k_panels, CHUNK_KEYS, j, t->row, t->columns_q);
    memset(t->k + count * f->head_dim, 0, (padded - count) * f->head_dim * sizeof(float));
    memset(t->v + count * f->head_dim_v, 0, (padded - count) * f->head_dim_v * sizeof(float));
    memset(t->dk, 0, padded * t->columns_q * sizeof(float));
    memset(t->dv, 0, padded * t->columns_v * sizeof(float));
}

/* t->row of lane x, in both of the shapes that products need. */
static void place_row(const backward_tiles *t, float *lanes, float *panels, int64_t x,
                      int64_t count, int64_t columns) {
    for (int64_t d = 0; d < count; d++) lanes[d * LANES + x] = t->row[d];
    spread(panels, LANES, x, t->row, columns);
}

static void pack_rows(const pa_backward_args *a, const block *w, backward_tiles *t) {
    const pa_forward_args *f = a->f;
    for (int64_t x = 0; x < LANES; x++) {
        const int64_t i = query_of(w, x), head = head_of(w, x);
        if (x < w->rows) {
            fetch(t, f->q, f->dtype, w->sequence->q + i * f->q_row + head * f->q_head, f->q_dim,
                  f->head_dim, t->columns_q);
            place_row(t, t->q, t->q_panels, x, f->head_dim, t->columns_q);
            fetch(t, a->grad_out, f->dtype,
                  a->gradients[w->b].out + i * a->g_row + head * a->g_head, a->g_dim,
                  f->head_dim_v, t->columns_v);
            place_row(t, t->g, t->g_panels, x, f->head_dim_v, t->columns_v);
        } else {
            memset(t->row, 0, (t->columns_q > t->columns_v ? t->columns_q : t->columns_v) * 4);
            place_row(t, t->q, t->q_panels, x, f->head_dim, t->columns_q);
            place_row(t, t->g, t->g_panels, x, f->head_dim_v, t->columns_v);
        }
    }
}

/* s = k q and dp = v g for keys [from, to) of the tile that starts at `tile` in the chunk. */
static void multiply_pairs(const pa_forward_args *f, backward_tiles *t, int64_t tile, int64_t from,
                           int64_t to) {
    for (int64_t j = from / ROWS_BY_3 * ROWS_BY_3; j < to; j += ROWS_BY_3) {
        product s = {t->k + (tile + j) * f->head_dim, t->q, t->s + j * LANES,
                     f->head_dim, 1, LANES, LANES, f->head_dim};
        product dp = {t->v + (tile + j) * f->head_dim_v, t->g, t->dp + j * LANES,
                      f->head_dim_v, 1, LANES, LANES, f->head_dim_v};
        multiply_lanes(&s);
        multiply_lanes(&dp);
    }
}

/* c[key][columns] += weights[key][lane] rows[lane][columns], for both dv and dk. */
static void add_over_lanes(float *c, const float *weights, const float *panels, int64_t columns,
                           int64_t from, int64_t to) {
    for (int64_t d = 0; d < columns; d += PANEL)
        for (int64_t j = from; j < to; j += ROWS_BY_2) {
            product p = {weights + j * LANES, panels + d * LANES, c + j * columns + d, LANES, 1,
                         PANEL, columns, LANES};
            add_panel(&p);
        }
}

/* Add to dk, dv and dq [LANES][columns_q] what keys [from, to) give: s holds d p, dp holds du. */
static void add_gradients(backward_tiles *t, int64_t tile, int64_t from, int64_t to, float *dq) {
    const int64_t first = from / ROWS_BY_2 * ROWS_BY_2, last = round_up(to, ROWS_BY_2);
    for (int side = 0; side < 2; side++) {
        float *weights = side ? t->dp : t->s;
        memset(weights + first * LANES, 0, (from - first) * LANES * sizeof(float));
        memset(weights + to * LANES, 0, (last - to) * LANES * sizeof(float));
    }
    add_over_lanes(t->dv + tile * t->columns_v, t->s, t->g_panels, t->columns_v, first, last);
    add_over_lanes(t->dk + tile * t->columns_q, t->dp, t->q_panels, t->columns_q, first, last);
    for (int64_t d = 0; d < t->columns_q; d += PANEL)
        for (int64_t x = 0; x < LANES; x += ROWS_BY_2) {
            product p = {t->dp + from * LANES + x,
                         t->k_panels + d * CHUNK_KEYS + (tile + from) * PANEL,
                         dq + x * t->columns_q + d, 1, LANES, PANEL, t->columns_q, to - from};
            add_panel(&p);
        }
}

static const float *dk_row(backward_tiles *t, int64_t key) { return t->dk + key * t->columns_q; }
static const float *dv_row(backward_tiles *t, int64_t key) { return t->dv + key * t->columns_v; }

/* Every product has been added where it belongs already. */
static inline void finish_block_gradients(backward_tiles *t, float *dq) { (void)t, (void)dq; }
static inline void finish_chunk_gradients(backward_tiles *t) { (void)t; }
