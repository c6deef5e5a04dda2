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

/* Philox4x32-10 (backends/common/philox.py) counts by key, query, head and offset. A round is
 *
 *     c0, c1, c2, c3 = high(B c2) ^ c1 ^ k0, low(B c2), high(A c0) ^ c3 ^ k1, low(A c0)
 *
 * so two rounds need no product of a lane and a key together: they are done for each lane and each
 * key once. The words of a lane after them are row ^ s0, s1, head ^ s3 and last, of the key s. */
#define PHILOX_A 0xD2511F53u
#define PHILOX_B 0xCD9E8D57u
#define PHILOX_STEP_0 0x9E3779B9u
#define PHILOX_STEP_1 0xBB67AE85u

typedef struct {
    uint32_t row[LANES], head[LANES], last[LANES];
} lane_words;

static inline uint32_t high_word(uint64_t product) { return (uint32_t)(product >> 32); }

static void start_lanes(const block *w, lane_words *words) {
    const uint32_t k0 = (uint32_t)w->f->seed, k1 = (uint32_t)(w->f->seed >> 32);
    for (int64_t x = 0; x < LANES; x++) {
        const uint32_t name = (uint32_t)(w->b * w->f->heads + head_of(w, x));
        const uint64_t of_name = (uint64_t)PHILOX_B * name;
        const uint64_t next = (uint64_t)PHILOX_A * (high_word(of_name) ^ (uint32_t)query_of(w, x) ^ k0);
        words->row[x] = (uint32_t)of_name ^ (k0 + PHILOX_STEP_0);
        words->head[x] = high_word(next) ^ (k1 + PHILOX_STEP_1);
        words->last[x] = (uint32_t)next;
    }
}

/* The rounds from the third on: c0 of the even words of c. */
static ALWAYS_INLINE vu last_rounds(uint64_t seed, vu c0, vu c1, vu c2, vu c3) {
    const vu a = u_set1(PHILOX_A), b = u_set1(PHILOX_B);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    UNROLL for (uint32_t round = 2; round < 9; round++) {
        const vu p = u_multiply(a, c0), q = u_multiply(b, c2);
        c0 = u_xor(u_xor(u_high(q), c1), u_set1(k0 + round * PHILOX_STEP_0));
        c1 = q;
        c2 = u_xor(u_xor(u_high(p), c3), u_set1(k1 + round * PHILOX_STEP_1));
        c3 = p;
    }
    return u_xor(u_xor(u_high(u_multiply(b, c2)), c1), u_set1(k0 + 9 * PHILOX_STEP_0));
}

/* keep[x] of key j: 0 or 1 / (1 - p). */
static void keep_lanes(const pa_forward_args *f, const lane_words *words, int64_t key,
                       float *keep) {
    const uint64_t of_key = (uint64_t)PHILOX_A * (uint32_t)key;
    const uint32_t second = high_word(of_key) ^ (uint32_t)f->dropout_offset ^ (uint32_t)(f->seed >> 32);
    const uint64_t next = (uint64_t)PHILOX_B * second;
    const vu s0 = u_set1(high_word(next)), s1 = u_set1((uint32_t)next);
    const vu s3 = u_set1((uint32_t)of_key);
    /* Words of 24 bits and limits of whole numbers are exact as floats. */
    const vf limit = v_set1((float)ceil(f->dropout_p * 0x1p24));
    const vf kept = v_set1((float)(1.0 / (1.0 - f->dropout_p)));
    for (int64_t x = 0; x < LANES; x += VW) {
        const vu c0 = u_xor(u_load(words->row + x), s0), c2 = u_xor(u_load(words->head + x), s3);
        const vu c3 = u_load(words->last + x);
        const vu even = last_rounds(f->seed, c0, s1, c2, c3);
        const vu odd = last_rounds(f->seed, u_high(c0), s1, u_high(c2), u_high(c3));
        v_store(keep + x, v_select_lt(v_top24(u_join(even, odd)), limit, v_set1(0.0f), kept));
    }
}

/* Drop weights p [keys][LANES] of keys [from, to). */
static void drop(const block *w, float *p, int64_t first_key, int64_t from, int64_t to) {
    float keep[LANES];
    lane_words words;
    start_lanes(w, &words);
    for (int64_t j = from; j < to; j++) {
        keep_lanes(w->f, &words, first_key + j, keep);
        for (int64_t x = 0; x < LANES; x += VW) {
            float *at = p + j * LANES + x;
            v_store(at, v_mul(v_load(at), v_load(keep + x)));
        }
    }
}
