/* Products in float32, for every dtype and instruction set: what forward.h computes with.
 *
 * acc is [rows][columns], rows of one block after those of the other.
 */

#define HEADROOM 0.0f
#define BLOCK_N 128

typedef struct {
    float *q;          /* [blocks][head_dim][LANES] */
    float *k, *v;      /* [block_n][head_dim]; [panels][block_n][PANEL] */
    float *s;          /* [block_n][LANES] */
    float *acc;
    float *top, *sum;  /* [rows] maximum and sum */
    float *row;        /* one row of any operand */
    uint8_t *finite;   /* [block_n] whether a key's v is */
    int64_t columns;   /* head_dim_v in whole panels */
} forward_tiles;

static inline int64_t row_floats(const pa_forward_args *f) {
    return round_up(f->head_dim > f->head_dim_v ? f->head_dim : f->head_dim_v, PANEL);
}

/* The parts of `memory`; returns how many floats they take. */
static int64_t lay_out(const pa_forward_args *f, float *memory, forward_tiles *t) {
    float *at = memory;
    t->columns = round_up(f->head_dim_v, PANEL);
    t->s = at, at += f->block_n * LANES;
    t->q = at, at += f->block_m * f->head_dim;
    t->v = at, at += f->block_n * t->columns;
    t->acc = at, at += f->block_m * t->columns;
    t->top = at, at += f->block_m;
    t->sum = at, at += f->block_m;
    t->row = at, at += row_floats(f);
    t->k = at, at += f->block_n * f->head_dim;
    t->finite = (uint8_t *)at;
    return at - memory + round_up(f->block_n, 4) / 4;
}

static void pack_queries(const block *w, forward_tiles *t, int64_t at) {
    const pa_forward_args *f = w->f;
    float *q = t->q + at * f->head_dim;
    memset(q, 0, f->head_dim * LANES * sizeof(float));
    for (int64_t x = 0; x < w->rows; x++) {
        int64_t from = w->sequence->q + query_of(w, x) * f->q_row + head_of(w, x) * f->q_head;
        load_row(t->row, f->q, f->dtype, from, f->q_dim, f->head_dim);
        for (int64_t d = 0; d < f->head_dim; d++) q[d * LANES + x] = t->row[d];
    }
}

static void pack_keys(const block *w, forward_tiles *t, int64_t first_key, int64_t count) {
    const pa_forward_args *f = w->f;
    const int64_t padded = round_up(count, ROWS_BY_3);
    for (int64_t d = f->head_dim_v; d < t->columns; d++) t->row[d] = 0.0f;
    for (int64_t j = 0; j < count; j++) {
        int64_t k, v;
        key_offsets(f, w->b, w->kv_head, first_key + j, &k, &v);
        load_row(t->k + j * f->head_dim, f->k, f->kv_dtype, k, f->k_dim, f->head_dim);
        load_row(t->row, f->v, f->kv_dtype, v, f->v_dim, f->head_dim_v);
        t->finite[j] = (uint8_t)row_is_finite(t->row, f->head_dim_v);
        spread(t->v, f->block_n, j, t->row, t->columns);
    }
    memset(t->k + count * f->head_dim, 0, (padded - count) * f->head_dim * sizeof(float));
}

/* s = k q for keys [from, to) of the tile and the block of rows at `at`. */
static void multiply_scores(const pa_forward_args *f, forward_tiles *t, int64_t at, int64_t from,
                            int64_t to) {
    for (int64_t j = from / ROWS_BY_3 * ROWS_BY_3; j < to; j += ROWS_BY_3) {
        product p = {t->k + j * f->head_dim, t->q + at * f->head_dim, t->s + j * LANES,
                     f->head_dim, 1, LANES, LANES, f->head_dim};
        multiply_lanes(&p);
    }
}

/* Keys whose v a product over [from, to) multiplies, with 0 where nothing is to be added. */
static inline int touched_are_finite(const forward_tiles *t, int64_t from, int64_t to) {
    return !memchr(t->finite + from, 0, to - from);
}

/* acc = decay acc + p v for keys [from, to). */
static void add_values(const pa_forward_args *f, forward_tiles *t, int64_t at, const float *decay,
                       int64_t from, int64_t to) {
    for (int64_t d = 0; d < t->columns; d += PANEL)
        for (int64_t x = 0; x < LANES; x += ROWS_BY_2) {
            product p = {t->s + from * LANES + x, t->v + d * f->block_n + from * PANEL,
                         t->acc + (at + x) * t->columns + d, 1, LANES, PANEL, t->columns,
                         to - from};
            multiply_panel(&p, decay + x);
        }
}

/* Element d of the accumulator of row `row`, and of the value of a packed key. */
static inline float *acc_at(const forward_tiles *t, int64_t row, int64_t d) {
    return t->acc + row * t->columns + d;
}

static inline float value_at(const pa_forward_args *f, const forward_tiles *t, int64_t key,
                             int64_t d) {
    return t->v[d / PANEL * PANEL * f->block_n + key * PANEL + d % PANEL];
}

/* Row x of the block as it is to be stored, times share[x]; x goes through the block in order. */
static const float *finished_row(forward_tiles *t, int64_t at, int64_t x, const float *share) {
    float *row = t->acc + (at + x) * t->columns;
    for (int64_t d = 0; d < t->columns; d += VW)
        v_store(row + d, v_mul(v_load(row + d), v_set1(share[x])));
    return row;
}

static inline void engine_start(void) {}
static inline void engine_stop(void) {}
