/* Scores of one tile, keys down and query rows across, in the order that defines them.
 *
 * s [keys][LANES] holds products of one block of rows: lane x is row first + x of a kv head, and row
 * r is query r / group of head r % group within the group, so that neighbours share their keys.
 */

/* -inf where the window hides key first_key + j from a lane, for j in [from, to). */
static void hide_by_window(const block *w, float *s, int64_t first_key, int64_t from, int64_t to) {
    int64_t left, right, ignored;
    window_of(w, query_of(w, w->rows - 1), &left, &ignored);
    window_of(w, query_of(w, 0), &ignored, &right);
    if (w->rows == LANES && left <= first_key + from && right >= first_key + to) return;
    float low[LANES], high[LANES], all_low = -1.0f, all_high = (float)to;
    for (int64_t x = 0; x < LANES; x++) {
        int64_t first = to, last = from; /* a lane without a row sees nothing */
        if (x < w->rows) {
            window_of(w, query_of(w, x), &first, &last);
            first -= first_key;
            last -= first_key;
        }
        low[x] = (float)(first < from ? from : first > to ? to : first);
        high[x] = (float)(last < from ? from : last > to ? to : last);
        if (low[x] > all_low) all_low = low[x];
        if (high[x] < all_high) all_high = high[x];
    }
    const vf hidden = v_set1(-INFINITY);
    for (int64_t j = from; j < to; j++) {
        if ((float)j >= all_low && (float)j < all_high) continue;
        const vf key = v_set1((float)j);
        for (int64_t x = 0; x < LANES; x += VW) {
            vf value = v_load(s + j * LANES + x);
            value = v_select_lt(key, v_load(low + x), hidden, value);
            value = v_select_lt(key, v_load(high + x), value, hidden);
            v_store(s + j * LANES + x, value);
        }
    }
}

/* Scale and softcap; where slopes keeps 1 - tanh^2 for the backward. */
static void scale_and_cap(const pa_forward_args *f, float *s, float *slope, int64_t from,
                          int64_t to) {
    const vf scale = v_set1((float)f->softmax_scale), cap = v_set1((float)f->softcap);
    const vf inverse = v_set1((float)(f->softmax_scale / (f->softcap ? f->softcap : 1.0)));
    for (int64_t at = from * LANES; at < to * LANES; at += VW) {
        vf value = v_load(s + at);
        if (f->softcap != 0.0) {
            vf bent = v_tanh(v_mul(value, inverse));
            if (slope) v_store(slope + at, v_sub(v_set1(1.0f), v_mul(bent, bent)));
            v_store(s + at, v_mul(bent, cap));
        } else {
            v_store(s + at, v_mul(value, scale));
        }
    }
}

static void add_alibi(const block *w, float *s, int64_t first_key, int64_t from, int64_t to) {
    float slope[LANES] = {0}, place[LANES] = {0};
    const float *slopes = w->f->slopes + w->b * w->f->slopes_batch;
    for (int64_t x = 0; x < w->rows; x++) {
        slope[x] = -slopes[head_of(w, x)];
        place[x] = (float)(query_of(w, x) + w->sequence->seqlen_k - w->sequence->seqlen_q
                           - first_key);
    }
    for (int64_t j = from; j < to; j++)
        for (int64_t x = 0; x < LANES; x += VW) {
            vf distance = v_abs(v_sub(v_set1((float)j), v_load(place + x)));
            float *at = s + j * LANES + x;
            v_store(at, v_fma(v_load(slope + x), distance, v_load(at)));
        }
}

enum { SPAN = 64 }; /* keys whose bias and mask are held at once */

/* What bias and mask add to the scores of one row against `count` <= SPAN keys: -inf hides. */
static void row_of_bias(const block *w, int64_t lane, int64_t key, int64_t count, float *added) {
    const pa_forward_args *f = w->f;
    const int64_t i = query_of(w, lane), head = head_of(w, lane), *step = f->mask_stride;
    if (f->bias)
        load_row(added, f->bias, f->bias_dtype,
                 bias_at(f->bias_stride, w->b, head, i) + key * f->bias_stride[3],
                 f->bias_stride[3], count);
    else
        memset(added, 0, count * sizeof(float));
    if (!f->mask) return;
    const uint8_t *mask = f->mask + bias_at(step, w->b, head, i) + key * step[3];
    uint8_t seen[SPAN];
    for (int64_t j = 0; j < count; j++) seen[j] = mask[j * step[3]];
    /* By bits: a branch on a random mask would cost more than a tile's products. */
    for (int64_t j = 0; j < count; j++) {
        const uint32_t keep = 0u - (uint32_t)(seen[j] != 0), hidden = 0xFF800000u;
        uint32_t bits;
        memcpy(&bits, added + j, 4);
        bits = (bits & keep) | (hidden & ~keep);
        memcpy(added + j, &bits, 4);
    }
}

/* Whether every row of a kv head has the same bias and mask. */
static inline int rows_share_bias(const pa_forward_args *f) {
    const int64_t *bias = f->bias_stride, *mask = f->mask_stride;
    return !(f->bias && (bias[1] | bias[2])) && !(f->mask && (mask[1] | mask[2]));
}

/* s + added, or -inf wherever added is: the score may be NaN there. */
static inline void add_or_hide(float *s, vf added) {
    const vf hidden = v_set1(-INFINITY);
    v_store(s, v_select_lt(hidden, added, v_add(v_load(s), added), added));
}

static void add_bias_and_mask(const block *w, float *s, int64_t first_key, int64_t from,
                              int64_t to) {
    const int shared = rows_share_bias(w->f);
    float rows[LANES * SPAN], column[VW];
    if (!shared) memset(rows, 0, sizeof(rows));
    for (int64_t start = from; start < to; start += SPAN) {
        const int64_t count = to - start < SPAN ? to - start : SPAN;
        for (int64_t x = 0; x < (shared ? 1 : w->rows); x++)
            row_of_bias(w, x, first_key + start, count, rows + x * SPAN);
        for (int64_t j = 0; j < count; j++)
            for (int64_t x = 0; x < LANES; x += VW) {
                float *at = s + (start + j) * LANES + x;
                if (shared) {
                    add_or_hide(at, v_set1(rows[j]));
                    continue;
                }
                for (int64_t n = 0; n < VW; n++) column[n] = rows[(x + n) * SPAN + j];
                add_or_hide(at, v_load(column));
            }
    }
}

/* Whether products need more than a multiplication by softmax_scale log2(e) > 0 in the exponent. */
static inline int has_features(const pa_forward_args *f) {
    return f->softcap != 0.0 || f->slopes || f->bias || !(f->softmax_scale > 0.0);
}

/* Scores from products; returns what they are to be multiplied by to be powers of two. */
static float finish_scores(const block *w, float *s, float *slope, int64_t first_key, int64_t from,
                           int64_t to) {
    const pa_forward_args *f = w->f;
    const int features = has_features(f);
    if (features) scale_and_cap(f, s, slope, from, to);
    if (f->slopes) add_alibi(w, s, first_key, from, to);
    if (f->bias || f->mask) add_bias_and_mask(w, s, first_key, from, to);
    hide_by_window(w, s, first_key, from, to);
    return (float)(features ? LOG2_E : LOG2_E * f->softmax_scale);
}

/* What Philox counts by, of every lane. */
typedef struct {
    uint32_t query[LANES], head[LANES];
} lane_names;

static void name_lanes(const block *w, lane_names *names) {
    for (int64_t x = 0; x < LANES; x++) {
        names->query[x] = (uint32_t)query_of(w, x);
        names->head[x] = (uint32_t)(w->b * w->f->heads + head_of(w, x));
    }
}

/* keep[x] of key j: 0 or 1 / (1 - p), by Philox4x32-10 (backends/common/philox.py). */
static void keep_lanes(const pa_forward_args *f, const lane_names *names, int64_t key,
                       float *keep) {
    const float kept = (float)(1.0 / (1.0 - f->dropout_p));
    uint32_t c0[LANES], c1[LANES], c2[LANES], c3[LANES];
    uint32_t k0 = (uint32_t)f->seed, k1 = (uint32_t)(f->seed >> 32);
    for (int64_t x = 0; x < LANES; x++) {
        c0[x] = (uint32_t)key;
        c1[x] = names->query[x];
        c2[x] = names->head[x];
        c3[x] = (uint32_t)f->dropout_offset;
    }
    for (int round = 0; round < 10; round++) {
        for (int64_t x = 0; x < LANES; x++) {
            uint64_t even = (uint64_t)0xD2511F53u * c0[x], odd = (uint64_t)0xCD9E8D57u * c2[x];
            c0[x] = (uint32_t)(odd >> 32) ^ c1[x] ^ k0;
            c1[x] = (uint32_t)odd;
            c2[x] = (uint32_t)(even >> 32) ^ c3[x] ^ k1;
            c3[x] = (uint32_t)even;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int64_t x = 0; x < LANES; x++)
        keep[x] = (double)(c0[x] >> 8) * 0x1p-24 >= f->dropout_p ? kept : 0.0f;
}

/* Drop weights p [keys][LANES] of keys [from, to). */
static void drop(const block *w, float *p, int64_t first_key, int64_t from, int64_t to) {
    float keep[LANES];
    lane_names names;
    name_lanes(w, &names);
    for (int64_t j = from; j < to; j++) {
        keep_lanes(w->f, &names, first_key + j, keep);
        for (int64_t x = 0; x < LANES; x += VW) {
            float *at = p + j * LANES + x;
            v_store(at, v_mul(v_load(at), v_load(keep + x)));
        }
    }
}
