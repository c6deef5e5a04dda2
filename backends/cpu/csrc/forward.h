/* Forward in tiles with an online softmax (FlashAttention, arXiv 2205.14135).
 *
 * Products lie keys down, rows across: s = K Q^T needs no transpose of K, and the softmax works on
 * whole vectors of rows without a reduction across lanes. With c = softmax_scale log2(e), for each
 * tile of keys and running maximum m, sum l and accumulator a of each row, all in powers of two:
 *
 *     m' = max(m, c max_j s_j)     p_j = 2^(c s_j - m')
 *     l' = l 2^(m - m') + sum_j p_j
 *     a' = a 2^(m - m') + sum_j d_j p_j v_j
 *
 * A row's arithmetic depends on the tiles of keys and its block of LANES rows alone, not on who
 * computes it or what else there is: results are equal bit by bit for any number of threads.
 */

/* Which keys of the tile some row of the block sees: [from, to). */
static void tile_range(const block *w, int64_t first_key, int64_t count, int64_t *from,
                       int64_t *to) {
    int64_t ignored;
    window_of(w, query_of(w, 0), from, &ignored);
    window_of(w, query_of(w, w->rows - 1), &ignored, to);
    *from = *from > first_key ? *from - first_key : 0;
    *to = *to - first_key < count ? *to - first_key : count;
}

/* acc = decay acc + p v, leaving hidden keys out: 0 times their NaN or inf would be NaN. */
static void add_visible(const block *w, forward_tiles *t, int64_t at, const float *decay,
                        int64_t first_key, int64_t from, int64_t to) {
    for (int64_t x = 0; x < w->rows; x++) {
        for (int64_t d = 0; d < w->f->head_dim_v; d++) *acc_at(t, at + x, d) *= decay[x];
        for (int64_t j = from; j < to; j++) {
            if (!is_visible(w, x, first_key + j)) continue;
            for (int64_t d = 0; d < w->f->head_dim_v; d++)
                *acc_at(t, at + x, d) += t->s[j * LANES + x] * value_at(w->f, t, j, d);
        }
    }
}

/* One block of rows, at row `at` of the unit, against the packed tile of keys. */
static void forward_tile(const block *w, forward_tiles *t, int64_t at, int64_t first_key,
                         int64_t count) {
    const pa_forward_args *f = w->f;
    int64_t from, to;
    tile_range(w, first_key, count, &from, &to);
    if (from >= to) return;
    multiply_scores(f, t, at, from, to);
    float decay[LANES], factor = finish_scores(w, t->s, NULL, first_key, from, to);
    for (int64_t x = 0; x < LANES; x += VW)
        v_store(decay + x, softmax_lanes(t->s + x, from, to, factor, t->top + at + x,
                                         t->sum + at + x));
    if (f->dropout_p > 0.0) drop(w, t->s, first_key, from, to);
    if (touched_are_finite(t, from, to))
        add_values(f, t, at, decay, from, to);
    else
        add_visible(w, t, at, decay, first_key, from, to);
}

/* out and lse of one block: the sink joins the sum here. */
static void finish_block(const block *w, forward_tiles *t, int64_t at) {
    const pa_forward_args *f = w->f;
    float share[LANES] = {0};
    for (int64_t x = 0; x < w->rows; x++) {
        const int64_t head = head_of(w, x);
        double top = t->top[at + x], sum = t->sum[at + x], scale = 1.0;
        if (f->sinks) {
            const double sink = f->sinks[head] * LOG2_E, higher = sink > top ? sink : top;
            scale = higher > -INFINITY ? exp2(top - higher) : 0.0;
            sum = sum * scale + (higher > -INFINITY ? exp2(sink - higher) : 0.0);
            top = higher;
        }
        const int64_t lse = w->sequence->lse + head * f->lse_head + query_of(w, x);
        f->lse[lse] = (float)(top / LOG2_E + log(sum));
        /* Rows that saw nothing have a = 0 and l = 0. */
        share[x] = (float)(sum == 0.0 ? 1.0 : scale / sum);
    }
    for (int64_t x = 0; x < w->rows; x++) {
        const int64_t row = w->sequence->out + query_of(w, x) * f->out_row;
        store_row(f->out, f->dtype, row + head_of(w, x) * f->out_head,
                  finished_row(t, at, x, share), f->head_dim_v);
    }
}

static inline block block_of(const block *w, int64_t first, int64_t rows, int64_t at) {
    block part = *w;
    part.first = first + at;
    part.rows = rows - at < LANES ? rows - at : LANES;
    return part;
}

/* Rows [first, first + rows) of one kv head of one sequence. */
static void forward_unit(const pa_forward_args *f, int64_t b, int64_t kv_head, int64_t first,
                         int64_t rows, float *memory) {
    forward_tiles t;
    const block w = {f, f->sequences + b, b, kv_head, f->heads / f->kv_heads, first, rows};
    const int64_t padded = round_up(rows, LANES);
    int64_t from, to;
    lay_out(f, memory, &t);
    const unsigned mode = flush_start();
    engine_start();
    for (int64_t x = 0; x < padded; x++) t.top[x] = -INFINITY;
    memset(t.sum, 0, padded * sizeof(float));
    memset(t.acc, 0, padded * t.columns * sizeof(float));
    for (int64_t at = 0; at < rows; at += LANES) {
        const block part = block_of(&w, first, rows, at);
        pack_queries(&part, &t, at);
    }
    tile_range(&w, 0, w.sequence->seqlen_k, &from, &to);
    for (int64_t key = from / f->block_n * f->block_n; key < to; key += f->block_n) {
        const int64_t count = to - key < f->block_n ? to - key : f->block_n;
        pack_keys(&w, &t, key, count);
        for (int64_t at = 0; at < rows; at += LANES) {
            const block part = block_of(&w, first, rows, at);
            forward_tile(&part, &t, at, key, count);
        }
    }
    for (int64_t at = 0; at < rows; at += LANES) {
        const block part = block_of(&w, first, rows, at);
        finish_block(&part, &t, at);
    }
    engine_stop();
    flush_stop(mode);
}

static int64_t forward_floats(const pa_forward_args *f) {
    forward_tiles t;
    return lay_out(f, NULL, &t);
}
