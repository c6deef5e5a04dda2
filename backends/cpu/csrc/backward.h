/* Backward in tiles, recomputing the probabilities from lse (FlashAttention-2, arXiv 2307.08691).
 *
 * With p_ij = exp(s_ij - lse_i), dp_ij = d_ij (g_i . v_j) and delta_i = g_i . out_i - dlse_i:
 *
 *     ds_ij = p_ij (dp_ij - delta_i)        du_ij = ds_ij (1 - tanh_ij^2) softmax_scale
 *     dv_j = sum_i d_ij p_ij g_i            dk_j = sum_i du_ij q_i        dq_i = sum_j du_ij k_j
 *
 * and, summed over what they are broadcast over, with delta_i of every row,
 *
 *     dbias_ij = ds_ij                dsink = -sum_i exp(sink - lse_i) delta_i
 *
 * Scores lie keys down and rows across, as in forward.h. A unit owns every `splits`-th chunk of the
 * keys of one kv head: it finishes their dk and dv, and sums their part of dq. The parts are added
 * in order afterwards, so sums never depend on the number of threads.
 */

/* d p in s and du in dp, from products; with a gradient of the bias, ds in slope. */
static void differentiate(const block *w, backward_tiles *t, float factor, int keeps_ds,
                          int64_t first_key, int64_t from, int64_t to) {
    const pa_forward_args *f = w->f;
    const vf scale = v_set1(factor), outer = v_set1((float)f->softmax_scale);
    float keep[LANES];
    lane_words words;
    if (f->dropout_p > 0.0) start_lanes(w, &words);
    for (int64_t j = from; j < to; j++) {
        if (f->dropout_p > 0.0) keep_lanes(f, &words, first_key + j, keep);
        for (int64_t x = 0; x < LANES; x += VW) {
            float *s = t->s + j * LANES + x, *dp = t->dp + j * LANES + x;
            vf p = v_exp2(v_fma(v_load(s), scale, v_sub(v_set1(0.0f), v_load(t->lse + x))));
            vf dropped = p, back = v_load(dp);
            if (f->dropout_p > 0.0) {
                dropped = v_mul(p, v_load(keep + x));
                back = v_mul(back, v_load(keep + x));
            }
            vf ds = v_mul(p, v_sub(back, v_load(t->delta + x))), du = v_mul(ds, outer);
            const vf smallest = v_set1(0x1p-126f), zero = v_set1(0.0f);
            if (f->softcap != 0.0) du = v_mul(du, v_load(t->slope + j * LANES + x));
            v_store(s, dropped);
            /* 0 times a dp that overflowed would be NaN. */
            v_store(dp, v_select_lt(p, smallest, zero, du));
            if (keeps_ds) v_store(t->slope + j * LANES + x, v_select_lt(p, smallest, zero, ds));
        }
    }
}

/* ds, which is in slope, into the gradient of the bias. Who else adds to an element of it does so
 * before or after this unit, in an order that the shapes decide. */
static void add_bias_gradient(const pa_backward_args *a, const block *w, const backward_tiles *t,
                              int64_t first_key, int64_t from, int64_t to) {
    const int64_t step = a->dbias_stride[3], count = to - from;
    float line[TILE_KEYS];
    for (int64_t x = 0; x < w->rows; x++) {
        const int64_t row = bias_at(a->dbias_stride, w->b, head_of(w, x), query_of(w, x));
        const float *ds = t->slope + from * LANES + x;
        float *at = a->dbias + row + (first_key + from) * step;
        /* Side by side first: what is added to may lie anywhere. */
        for (int64_t j = 0; j < count; j++) line[j] = ds[j * LANES];
        int64_t j = 0;
        if (step == 1)
            for (; j + VW <= count; j += VW) v_store(at + j, v_add(v_load(at + j), v_load(line + j)));
        for (; j < count; j++) at[j * step] += line[j];
    }
}

/* grad_out . out of lane x; `memory` holds both rows. */
static float dot_of_row(const pa_backward_args *a, const block *w, float *memory, int64_t x) {
    const pa_forward_args *f = a->f;
    const int64_t i = query_of(w, x), head = head_of(w, x), columns = round_up(f->head_dim_v, VW);
    float *g = memory, *out = memory + columns, lanes[VW], sum = 0.0f;
    load_row(g, a->grad_out, f->dtype, a->gradients[w->b].out + i * a->g_row + head * a->g_head,
             a->g_dim, f->head_dim_v);
    load_row(out, f->out, f->dtype, w->sequence->out + i * f->out_row + head * f->out_head, 1,
             f->head_dim_v);
    for (int64_t d = f->head_dim_v; d < columns; d++) g[d] = out[d] = 0.0f;
    vf total = v_set1(0.0f);
    for (int64_t d = 0; d < columns; d += VW) total = v_fma(v_load(g + d), v_load(out + d), total);
    v_store(lanes, total);
    for (int64_t n = 0; n < VW; n++) sum += lanes[n];
    return sum;
}

/* lse in powers of two and delta of a block; rows that see nothing get an lse that hides all. */
static void load_row_values(const pa_backward_args *a, const block *w, backward_tiles *t) {
    for (int64_t x = 0; x < LANES; x++) {
        t->lse[x] = INFINITY;
        t->delta[x] = 0.0f;
        if (x >= w->rows) continue;
        const int64_t at = w->sequence->lse + head_of(w, x) * a->f->lse_head + query_of(w, x);
        const float lse = a->f->lse[at];
        if (lse == -INFINITY) continue;
        t->lse[x] = (float)(lse * LOG2_E);
        t->delta[x] = dot_of_row(a, w, t->row, x) - (a->grad_lse ? a->grad_lse[at] : 0.0f);
    }
}

/* One block of rows against the packed chunk of keys; dq [LANES][columns_q] is added to. */
static void backward_block(const pa_backward_args *a, const block *w, backward_tiles *t,
                           int64_t first_key, int64_t count, float *dq) {
    pack_rows(a, w, t);
    load_row_values(a, w, t);
    for (int64_t tile = 0; tile < count; tile += TILE_KEYS) {
        int64_t from, to;
        const int64_t keys = count - tile < TILE_KEYS ? count - tile : TILE_KEYS;
        tile_range(w, first_key + tile, keys, &from, &to);
        if (from >= to) continue;
        multiply_pairs(a->f, t, tile, from, to);
        float factor = finish_scores(w, t->s, t->slope, first_key + tile, from, to);
        differentiate(w, t, factor, a->dbias != NULL, first_key + tile, from, to);
        if (a->dbias) add_bias_gradient(a, w, t, first_key + tile, from, to);
        add_gradients(t, tile, from, to, dq);
    }
    finish_block_gradients(t, dq);
}

/* The queries that see some of the keys [first_key, first_key + count): [from, to). */
static void query_range(const block *w, int64_t first_key, int64_t count, int64_t *from,
                        int64_t *to) {
    const int64_t queries = w->sequence->seqlen_q, offset = w->sequence->seqlen_k - queries;
    *from = w->f->right < 0 ? 0 : first_key - offset - w->f->right;
    *to = w->f->left < 0 ? queries : first_key + count - offset + w->f->left;
    if (*from < 0) *from = 0;
    if (*to > queries) *to = queries;
}

static void store_key_gradients(const pa_backward_args *a, const block *w, backward_tiles *t,
                                int64_t first_key, int64_t count) {
    const pa_forward_args *f = a->f;
    const pa_sequence *into = a->gradients + w->b;
    for (int64_t j = 0; j < count; j++) {
        store_row(a->dk, f->kv_dtype,
                  into->k + (first_key + j) * a->dk_row + w->kv_head * a->dk_head, dk_row(t, j),
                  f->head_dim);
        store_row(a->dv, f->kv_dtype,
                  into->v + (first_key + j) * a->dv_row + w->kv_head * a->dv_head, dv_row(t, j),
                  f->head_dim_v);
    }
}

static inline float *dq_part(const pa_backward_args *a, const block *w, int64_t columns,
                             int64_t split) {
    const int64_t padded = round_up(w->sequence->seqlen_q * w->group, LANES);
    return a->dq_parts + a->dq_part[w->b] + (w->kv_head * a->splits + split) * padded * columns;
}

/* Every splits-th chunk of keys of one kv head of one sequence. Returns whether all was finite. */
static int64_t backward_unit(const pa_backward_args *a, int64_t b, int64_t kv_head, int64_t split,
                             float *memory) {
    const pa_forward_args *f = a->f;
    backward_tiles t;
    block w = {f, f->sequences + b, b, kv_head, f->heads / f->kv_heads, 0, 0};
    const int64_t rows = w.sequence->seqlen_q * w.group, keys = w.sequence->seqlen_k;
    lay_out_backward(f, memory, &t);
    t.finite = 1;
    float *dq = dq_part(a, &w, t.columns_q, split);
    memset(dq, 0, round_up(rows, LANES) * t.columns_q * sizeof(float));
    const unsigned mode = flush_start();
    engine_start();
    for (int64_t key = split * CHUNK_KEYS; key < keys; key += a->splits * CHUNK_KEYS) {
        const int64_t count = keys - key < CHUNK_KEYS ? keys - key : CHUNK_KEYS;
        int64_t from, to;
        pack_chunk(&w, &t, key, count);
        query_range(&w, key, count, &from, &to);
        for (int64_t at = from * w.group / LANES * LANES; at < to * w.group; at += LANES) {
            const block part = block_of(&w, 0, rows, at);
            backward_block(a, &part, &t, key, count, dq + at * t.columns_q);
        }
        finish_chunk_gradients(&t);
        store_key_gradients(a, &w, &t, key, count);
    }
    engine_stop();
    flush_stop(mode);
    return t.finite;
}

/* The sinks' gradients of one kv head of one sequence: a sink's score has the gradient -p delta. */
static void sum_sinks(const pa_backward_args *a, const block *w, int64_t rows) {
    const pa_forward_args *f = a->f;
    const int64_t first = w->b * f->heads + w->kv_head * w->group;
    float line[2 * round_up(f->head_dim_v, VW)];
    for (int64_t h = 0; h < w->group; h++) a->dsinks[first + h] = 0.0;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t head = head_of(w, r);
        const int64_t at = w->sequence->lse + head * f->lse_head + query_of(w, r);
        if (f->lse[at] == -INFINITY) continue;
        const double p = exp((double)f->sinks[head] - f->lse[at]);
        const double delta = (double)dot_of_row(a, w, line, r) - (a->grad_lse ? a->grad_lse[at] : 0);
        a->dsinks[first + r % w->group] -= p * delta;
    }
}

/* dq of the rows [first, first + count) of one kv head: the sum of its parts, in order. */
static void backward_sum(const pa_backward_args *a, int64_t b, int64_t kv_head, int64_t first,
                         int64_t count) {
    const pa_forward_args *f = a->f;
    const block w = {f, f->sequences + b, b, kv_head, f->heads / f->kv_heads, 0, 0};
    const int64_t columns = round_up(f->head_dim, PANEL);
    const int64_t padded = round_up(w.sequence->seqlen_q * w.group, LANES) * columns;
    if (a->dsinks) sum_sinks(a, &w, count);
    for (int64_t r = first; r < first + count; r++) {
        float *sum = dq_part(a, &w, columns, 0) + r * columns;
        for (int64_t split = 1; split < a->splits; split++)
            for (int64_t d = 0; d < columns; d += VW)
                v_store(sum + d, v_add(v_load(sum + d), v_load(sum + split * padded + d)));
        const int64_t at = a->gradients[b].q + query_of(&w, r) * a->dq_row;
        store_row(a->dq, f->dtype, at + head_of(&w, r) * a->dq_head, sum, f->head_dim);
    }
}

static int64_t backward_floats(const pa_forward_args *f) {
    backward_tiles t;
    return lay_out_backward(f, NULL, &t);
}

static int64_t backward_columns(const pa_forward_args *f) {
    return round_up(f->head_dim, PANEL);
}
