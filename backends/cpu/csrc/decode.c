/* The decode kernel, for the instruction set that this file is compiled for.
 *
 * For each row of the group over the keys of one chunk, in powers of two with c = log2(e):
 *
 *     s_j = c score_j      m = max_j s_j      p_j = 2^(s_j - m)      l = sum_j p_j
 *     a = sum_j p_j v_j
 *
 * and over the chunks x of a row, with the sink z: M = max(max_x m_x, c z),
 *
 *     L = sum_x l_x 2^(m_x - M) + 2^(c z - M)      out = sum_x a_x 2^(m_x - M) / L
 *     lse = M / c + log L
 *
 * K streams once and V once; both are read by tiles of rows x keys whose sums stay in registers.
 * Each is read as two streams, the chunk's halves side by side: what the processor reads ahead by
 * itself ends with a page, and starts over while the other stream goes on.
 */

#include <math.h>
#include <string.h>

#include "vec.h"

#include "decode.h"
#include "elements.h"
#include "keys.h"
#include "visible.h"

/* Keys whose rows stay in the first-level cache while every tile of rows reads them. */
#define KEYS 64
/* Those of v: fewer, so that what comes next is asked for in each pass over their columns. */
#define KEYS_V 32
/* Keys that one stream goes on for. */
#define GRAIN 4
/* How far ahead of its use a row is asked for. */
#define AHEAD_BYTES 3072

#if VEC_REGISTERS >= 32
#define ROWS 4
#else
#define ROWS 2
#endif

/* What is asked for ahead of its use: whole rows, one of each stream in turn. */
typedef struct {
    const char *const *at; /* [count] rows of k, then of v */
    int64_t next, count, streamed; /* of these rows, in turn up to `streamed` */
    int64_t bytes, bytes_v;
} asker;

typedef struct {
    const pa_forward_args *f;
    block w;
    int64_t first, count; /* keys of the chunk */
    int64_t wide_k, wide_v; /* head dims in whole pairs of vectors */
    int64_t columns; /* of a row of acc */
    int64_t stride; /* of a row of p */
    int packs_k, packs_v; /* rows that can't be read as they lie are copied first */
    int dots; /* products of bfloat16 by the instructions for it */
    asker *ask;
    float *q, *p;
    uint16_t *q_bits;
    const char **at; /* [2 count]: rows of k, then of v, in the order in which they are read */
    int64_t half; /* keys of one stream; those behind two of them are read as they lie */
#ifdef PA_AMX
    uint16_t *pairs; /* tiles of queries */
    uint16_t *split; /* tiles of weights */
#endif
    char *packed; /* [KEYS][wide] */
} chunk;

static inline int64_t bytes_of(int64_t dtype) { return dtype == PA_F32 ? 4 : dtype == PA_I8 ? 1 : 2; }

static int64_t widest(const pa_forward_args *f) {
    return round_up(f->head_dim > f->head_dim_v ? f->head_dim : f->head_dim_v, 2 * VW);
}

/* The parts of the scratch; returns how many bytes they take. */
static int64_t lay_out(const pa_forward_args *f, int64_t rows, char *scratch, chunk *c) {
    char *at = scratch;
    c->stride = round_up(f->block_n, KEYS);
    c->wide_k = round_up(f->head_dim, 2 * VW);
    c->wide_v = round_up(f->head_dim_v, 2 * VW);
    c->columns = pa_decode_columns(f);
    c->q = (float *)at, at += rows * widest(f) * 4;
    c->p = (float *)at, at += rows * c->stride * 4;
    c->q_bits = (uint16_t *)at, at += round_up(rows * c->wide_k * 2, 64);
    c->packed = at, at += KEYS * widest(f) * 4;
    c->at = (const char **)at, at += 2 * f->block_n * (int64_t)sizeof(char *);
#ifdef PA_AMX
    at = (char *)0 + round_up(at - (char *)0, 64);
    c->pairs = (uint16_t *)at, at += round_up(rows, 16) * c->wide_k * 2;
    c->split = (uint16_t *)at, at += c->stride * 32;
#endif
    return at - scratch;
}

static int64_t scratch_bytes(const pa_forward_args *f, int64_t rows) {
    chunk c;
    return lay_out(f, rows, NULL, &c);
}

/* Which key of the chunk is read as the n-th, and GRAIN from there on; n is a multiple of that. */
static inline int64_t place_of(const chunk *c, int64_t n) {
    if (n >= 2 * c->half) return n;
    return n / (2 * GRAIN) * GRAIN + (n / GRAIN % 2 ? c->half : 0);
}

/* Rows of `count` keys as pointers; those of one page, or of all without pages, lie evenly. */
static void find_keys(chunk *c) {
    const pa_forward_args *f = c->f;
    const int64_t size = bytes_of(f->kv_dtype), count = c->count;
    if (!count) return; /* An array of no elements is undefined. */
    const char *found[2][count];
    int64_t k, v, even = count;
    for (int64_t j = 0; j < count; j += even) {
        key_offsets(f, c->w.b, c->w.kv_head, c->first + j, &k, &v);
        if (f->block_table) {
            even = f->page_size - (c->w.sequence->first_key + c->first + j) % f->page_size;
            if (even > count - j) even = count - j;
        }
        const char *key = (const char *)f->k + k * size, *value = (const char *)f->v + v * size;
        for (int64_t i = 0; i < even; i++) {
            found[0][j + i] = key + i * f->k_row * size;
            found[1][j + i] = value + i * f->v_row * size;
        }
    }
    for (int64_t x = 0; x < 2; x++) {
        const char **to = c->at + x * count;
        for (int64_t n = 0; n < 2 * c->half; n += GRAIN)
            memcpy(to + n, found[x] + place_of(c, n), GRAIN * sizeof *to);
        memcpy(to + 2 * c->half, found[x] + 2 * c->half, (count - 2 * c->half) * sizeof *to);
    }
}

static void load_queries(chunk *c) {
    const pa_forward_args *f = c->f;
    float line[c->wide_k];
    for (int64_t d = f->head_dim; d < c->wide_k; d++) line[d] = 0.0f;
    for (int64_t r = 0; r < c->w.rows; r++) {
        const int64_t from = c->w.sequence->q + query_of(&c->w, r) * f->q_row
                             + head_of(&c->w, r) * f->q_head;
        load_row(line, f->q, f->dtype, from, f->q_dim, f->head_dim);
        if (f->k_scale) {
            /* q . (scale k) = (scale q) . k */
            const float scale = f->k_scale[c->w.b * f->kv_heads + c->w.kv_head];
            for (int64_t d = 0; d < f->head_dim; d++) line[d] *= scale;
        }
        if (c->dots) {
            store_row(c->q_bits, PA_BF16, r * c->wide_k, line, c->wide_k);
            continue;
        }
        float *to = c->q + r * c->wide_k;
        if (f->kv_dtype != PA_BF16) {
            memcpy(to, line, c->wide_k * sizeof(float));
            continue;
        }
        /* As v_place has it. */
        for (int64_t d = 0; d < c->wide_k; d += 2 * VW)
            for (int x = 0; x < VW; x++) {
                to[d + x] = line[d + 2 * x];
                to[d + VW + x] = line[d + 2 * x + 1];
            }
    }
}

/* `keys` rows side by side in whole vectors, zeros behind their ends. */
static void pack_rows(char *to, const char *const *rows, int64_t keys, int64_t size, int64_t step,
                      int64_t dim, int64_t wide) {
    for (int64_t j = 0; j < keys; j++, to += wide * size) {
        if (step == 1)
            memcpy(to, rows[j], dim * size);
        else
            for (int64_t d = 0; d < dim; d++)
                memcpy(to + d * size, rows[j] + d * step * size, size);
        memset(to + dim * size, 0, (wide - dim) * size);
    }
}

/* Rows of up to `most` keys as tiles may read them; the last is repeated up to a whole tile. */
static int64_t gather(const chunk *c, int values, int64_t j, int64_t most, const char **rows) {
    const pa_forward_args *f = c->f;
    const int64_t keys = c->count - j < most ? c->count - j : most;
    const char *const *at = c->at + (values ? c->count : 0) + j;
    if (values ? c->packs_v : c->packs_k) {
        const int64_t size = bytes_of(f->kv_dtype), wide = values ? c->wide_v : c->wide_k;
        pack_rows(c->packed, at, keys, size, values ? f->v_dim : f->k_dim,
                  values ? f->head_dim_v : f->head_dim, wide);
        for (int64_t i = 0; i < keys; i++) rows[i] = c->packed + i * wide * size;
    } else {
        memcpy(rows, at, keys * sizeof *rows);
    }
    for (int64_t i = keys; i < round_up(keys, 8); i++) rows[i] = rows[keys - 1];
    return keys;
}

/* Asks for the next rows; after those of k for those of v. */
static inline void ask_ahead(asker *a, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) {
        int64_t n = a->next++;
        if (n >= a->count) {
            if (a->bytes_v == 0) return;
            a->at += a->count;
            a->bytes = a->bytes_v;
            a->bytes_v = n = 0;
            a->next = 1;
        }
        if (n < a->streamed)
            n = n / (2 * GRAIN) * (2 * GRAIN) + n % 2 * GRAIN + n % (2 * GRAIN) / 2;
        for (int64_t line = 0; line < a->bytes; line += 64)
            __builtin_prefetch(a->at[n] + line, 0, 3);
    }
}

/* Products of `rows` queries and `keys` keys, the first of which is read as the first-th. */
static ALWAYS_INLINE void dot_tile(const chunk *c, const int dtype, const int rows, const int keys,
                                   int64_t row, const char *const *k, int64_t first) {
    const float *q = c->q + row * c->wide_k;
    vf sum[4][8];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < keys; j++)
        sum[i][j] = v_set1(0.0f);
    for (int64_t d = 0; d < c->wide_k; d += 2 * VW)
        UNROLL for (int j = 0; j < keys; j++) {
            vf a, b;
            v_load2(dtype, k[j], d, &a, &b);
            UNROLL for (int i = 0; i < rows; i++) {
                sum[i][j] = v_fma(v_load(q + i * c->wide_k + d), a, sum[i][j]);
                sum[i][j] = v_fma(v_load(q + i * c->wide_k + d + VW), b, sum[i][j]);
            }
        }
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < keys; j += 4)
        v_sum4(sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3],
               c->p + (row + i) * c->stride + place_of(c, first + j));
}

#ifdef VEC_BF16_DOT
static ALWAYS_INLINE void dot_tile_bf16(const chunk *c, const int rows, const int keys, int64_t row,
                                        const char *const *k, int64_t first) {
    const uint16_t *q = c->q_bits + row * c->wide_k;
    vf sum[4][8];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < keys; j++)
        sum[i][j] = v_set1(0.0f);
    for (int64_t d = 0; d < c->wide_k; d += 2 * VW)
        UNROLL for (int j = 0; j < keys; j++) UNROLL for (int i = 0; i < rows; i++)
            sum[i][j] = v_dot_bf16(q + i * c->wide_k + d, (const uint16_t *)k[j] + d, sum[i][j]);
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < keys; j += 4)
        v_sum4(sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3],
               c->p + (row + i) * c->stride + place_of(c, first + j));
}
#endif

static ALWAYS_INLINE void dots(const chunk *c, const int dtype, const int rows, const int keys,
                               int64_t row, int64_t count, const char *const *k,
                               int64_t first) {
    for (int64_t j = 0; j < count; j += keys) {
        if (row == 0) ask_ahead(c->ask, keys);
#ifdef VEC_BF16_DOT
        if (dtype == PA_BF16 && c->dots) {
            dot_tile_bf16(c, rows, keys, row, k + j, first + j);
            continue;
        }
#endif
        dot_tile(c, dtype, rows, keys, row, k + j, first + j);
    }
}

/* p = q k for the whole chunk. */
static ALWAYS_INLINE void multiply_keys(const chunk *c, const int dtype) {
    const char *rows[KEYS];
    const int64_t n = c->w.rows;
    for (int64_t j = 0; j < c->count; j += KEYS) {
        const int64_t keys = gather(c, 0, j, KEYS, rows);
        int64_t r = 0;
        for (; r + ROWS <= n; r += ROWS) dots(c, dtype, ROWS, 4, r, keys, rows, j);
#if ROWS > 2
        for (; r + 2 <= n; r += 2) dots(c, dtype, 2, 8, r, keys, rows, j);
#endif
        for (; r < n; r++) dots(c, dtype, 1, 8, r, keys, rows, j);
    }
}

/* acc += p v of some rows and 2 VW pairs columns; `passes` of these together ask for rows ahead. */
static ALWAYS_INLINE void add_tile(const chunk *c, const int dtype, const int rows, const int pairs,
                                   int64_t row, int64_t column, int64_t first, int64_t keys,
                                   int64_t passes, const char *const *v, float *acc) {
    float *to = acc + row * c->columns + column;
    vf sum[4][8];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int x = 0; x < 2 * pairs; x++)
        sum[i][x] = v_load(to + i * c->columns + x * VW);
    for (int64_t n = 0, asked = 0; n < keys; n += GRAIN) {
        const float *p = c->p + row * c->stride + place_of(c, first + n);
        const int64_t end = keys - n < GRAIN ? keys : n + GRAIN;
        for (; asked < end; asked += passes) ask_ahead(c->ask, 1);
        for (int64_t j = n; j < end; j++, p++) {
            vf line[8];
            UNROLL for (int x = 0; x < pairs; x++)
                v_load2(dtype, v[j], column + x * 2 * VW, &line[2 * x], &line[2 * x + 1]);
            UNROLL for (int i = 0; i < rows; i++) {
                vf weight = v_set1(p[i * c->stride]);
                UNROLL for (int x = 0; x < 2 * pairs; x++)
                    sum[i][x] = v_fma(weight, line[x], sum[i][x]);
            }
        }
    }
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int x = 0; x < 2 * pairs; x++)
        v_store(to + i * c->columns + x * VW, sum[i][x]);
}

static ALWAYS_INLINE void add_columns(const chunk *c, const int dtype, const int rows, int64_t row,
                                      int64_t first, int64_t keys, const char *const *v,
                                      float *acc) {
    const int64_t width = (rows == 1 && c->wide_v >= 8 * VW ? 8 : 4) * VW;
    const int64_t passes = row == 0 ? (c->wide_v + width - 1) / width : keys + 1;
    int64_t d = 0;
    if (rows == 1)
        for (; d + 8 * VW <= c->wide_v; d += 8 * VW)
            add_tile(c, dtype, rows, 4, row, d, first, keys, passes, v, acc);
    for (; d + 4 * VW <= c->wide_v; d += 4 * VW)
        add_tile(c, dtype, rows, 2, row, d, first, keys, passes, v, acc);
    for (; d < c->wide_v; d += 2 * VW)
        add_tile(c, dtype, rows, 1, row, d, first, keys, passes, v, acc);
}

/* acc = p v for the whole chunk. */
static ALWAYS_INLINE void add_values(const chunk *c, const int dtype, float *acc) {
    const char *rows[KEYS];
    const int64_t n = c->w.rows;
    memset(acc, 0, n * c->columns * sizeof(float));
    for (int64_t j = 0; j < c->count; j += KEYS_V) {
        const int64_t keys = gather(c, 1, j, KEYS_V, rows);
        int64_t r = 0;
        for (; r + ROWS <= n; r += ROWS) add_columns(c, dtype, ROWS, r, j, keys, rows, acc);
#if ROWS > 2
        for (; r + 2 <= n; r += 2) add_columns(c, dtype, 2, r, j, keys, rows, acc);
#endif
        for (; r < n; r++) add_columns(c, dtype, 1, r, j, keys, rows, acc);
    }
}

/* Scale, softcap and alibi of one row, in the order that defines scores. */
static void finish_row(const chunk *c, int64_t r, float *s) {
    const pa_forward_args *f = c->f;
    const block *w = &c->w;
    const int64_t i = query_of(w, r), head = head_of(w, r);
    const vf scale = v_set1((float)f->softmax_scale), cap = v_set1((float)f->softcap);
    const vf bent = v_set1((float)(f->softmax_scale / (f->softcap != 0.0 ? f->softcap : 1.0)));
    float numbers[VW];
    for (int x = 0; x < VW; x++) numbers[x] = (float)x;
    const int64_t place = i + w->sequence->seqlen_k - w->sequence->seqlen_q - c->first;
    const float slope = f->slopes ? -f->slopes[w->b * f->slopes_batch + head] : 0.0f;
    for (int64_t j = 0; j < c->count; j += VW) {
        vf value = v_load(s + j);
        value = f->softcap != 0.0 ? v_mul(v_tanh(v_mul(value, bent)), cap) : v_mul(value, scale);
        if (f->slopes) {
            vf distance = v_add(v_load(numbers), v_set1((float)(j - place)));
            value = v_fma(v_set1(slope), v_abs(distance), value);
        }
        v_store(s + j, value);
    }
}

static void add_bias(const chunk *c, int64_t r, float *s) {
    const pa_forward_args *f = c->f;
    const int64_t i = query_of(&c->w, r), head = head_of(&c->w, r), step = f->bias_stride[3];
    const int64_t at = bias_at(f->bias_stride, c->w.b, head, i) + c->first * step;
    for (int64_t j = 0; j < c->count; j++) {
        const float added = element(f->bias, f->bias_dtype, at + j * step);
        s[j] = added == -INFINITY ? -INFINITY : s[j] + added;
    }
}

static void hide_masked(const chunk *c, int64_t r, float *s) {
    const pa_forward_args *f = c->f;
    const int64_t i = query_of(&c->w, r), head = head_of(&c->w, r), step = f->mask_stride[3];
    const uint8_t *mask = f->mask + bias_at(f->mask_stride, c->w.b, head, i) + c->first * step;
    for (int64_t j = 0; j < c->count; j++)
        if (!mask[j * step]) s[j] = -INFINITY;
}

/* Hides what the window does and what lies behind the chunk; returns whether it hid a key. */
static int hide_outside(const chunk *c, int64_t r, float *s) {
    int64_t from, to;
    window_of(&c->w, query_of(&c->w, r), &from, &to);
    from = from < c->first ? 0 : from - c->first;
    to = to - c->first > c->count ? c->count : to - c->first;
    for (int64_t j = 0; j < from && j < c->count; j++) s[j] = -INFINITY;
    for (int64_t j = to < 0 ? 0 : to; j < round_up(c->count, VW); j++) s[j] = -INFINITY;
    return from > 0 || to < c->count;
}

/* s becomes p, with s in units of 1 / factor of a power of two. */
static void softmax_row(const chunk *c, float *s, float factor, float *top, float *sum) {
    const int64_t count = round_up(c->count, VW);
    const vf scale = v_set1(factor);
    vf best = v_set1(-INFINITY), total = v_set1(0.0f);
    float lanes[VW];
    for (int64_t j = 0; j < count; j += VW) best = v_max(best, v_load(s + j));
    v_store(lanes, best);
    for (int w = VW / 2; w; w /= 2)
        for (int x = 0; x < w; x++)
            if (lanes[x + w] > lanes[x]) lanes[x] = lanes[x + w];
    const float most = lanes[0] * factor;
    /* A row that sees nothing has maximum -inf; any finite stand-in gives p = 0. */
    const vf minus = v_set1(most == -INFINITY ? 0.0f : -most);
    for (int64_t j = 0; j < count; j += VW) {
        ask_ahead(c->ask, (j & (4 * VW - 1)) == 0);
        vf p = v_exp2(v_fma(v_load(s + j), scale, minus));
        v_store(s + j, p);
        total = v_add(total, p);
    }
    v_store(lanes, total);
    for (int w = VW / 2; w; w /= 2)
        for (int x = 0; x < w; x++) lanes[x] += lanes[x + w];
    *top = most;
    *sum = lanes[0];
}

/* p, top and sum of every row; returns whether some row doesn't see some key. */
static int weigh(const chunk *c, const pa_partial *to) {
    const pa_forward_args *f = c->f;
    const int plain = f->softcap == 0.0 && !f->slopes && !f->bias && f->softmax_scale > 0.0;
    int hidden = f->mask || f->bias;
    for (int64_t r = 0; r < c->w.rows; r++) {
        float *s = c->p + r * c->stride;
        if (!plain) finish_row(c, r, s);
        if (f->bias) add_bias(c, r, s);
        if (f->mask) hide_masked(c, r, s);
        hidden |= hide_outside(c, r, s);
        softmax_row(c, s, (float)((plain ? f->softmax_scale : 1.0) * LOG2_E), to->top + r,
                    to->sum + r);
    }
    return hidden;
}

/* acc again, key by key without the hidden ones: 0 times their NaN or inf would be NaN. */
static void add_visible(const chunk *c, float *acc) {
    const pa_forward_args *f = c->f;
    float line[c->wide_v];
    memset(acc, 0, c->w.rows * c->columns * sizeof(float));
    for (int64_t n = 0; n < c->count; n++) {
        const int64_t j = place_of(c, n / GRAIN * GRAIN) + n % GRAIN;
        load_row(line, c->at[c->count + n], f->kv_dtype, 0, f->v_dim, f->head_dim_v);
        for (int64_t r = 0; r < c->w.rows; r++) {
            if (!is_visible(&c->w, r, c->first + j)) continue;
            const float weight = c->p[r * c->stride + j];
            for (int64_t d = 0; d < f->head_dim_v; d++)
                acc[r * c->columns + v_place((int)f->kv_dtype, d)] += weight * line[d];
        }
    }
}

static int all_finite(const chunk *c, const float *acc) {
    vf sum = v_set1(0.0f);
    for (int64_t r = 0; r < c->w.rows; r++)
        for (int64_t d = 0; d < c->wide_v; d += VW) {
            /* x - x is 0, or NaN where x is NaN or inf. */
            vf value = v_load(acc + r * c->columns + d);
            sum = v_add(sum, v_sub(value, value));
        }
    float lanes[VW], all = 0.0f;
    v_store(lanes, sum);
    for (int x = 0; x < VW; x++) all += lanes[x];
    return all == 0.0f;
}

static ALWAYS_INLINE void run(const chunk *c, const int dtype, const pa_partial *to) {
    multiply_keys(c, dtype);
    const int hidden = weigh(c, to);
    add_values(c, dtype, to->acc);
    if (hidden && !all_finite(c, to->acc)) add_visible(c, to->acc);
}

#ifdef PA_AMX
#include "decode_amx.h"
#endif

static __attribute__((noinline)) void run_f32(const chunk *c, const pa_partial *to) {
    run(c, PA_F32, to);
}
static __attribute__((noinline)) void run_bf16(const chunk *c, const pa_partial *to) {
    run(c, PA_BF16, to);
}
static __attribute__((noinline)) void run_f16(const chunk *c, const pa_partial *to) {
    run(c, PA_F16, to);
}

static __attribute__((noinline)) void run_i8(const chunk *c, const pa_partial *to) {
    run(c, PA_I8, to);
}

static void unit(const pa_forward_args *f, int64_t b, int64_t kv_head, int64_t first, int64_t count,
                 const pa_partial *to, void *scratch) {
    const pa_sequence *sequence = f->sequences + b;
    const int64_t group = f->heads / f->kv_heads, rows = sequence->seqlen_q * group;
    chunk c = {.f = f, .w = {f, sequence, b, kv_head, group, 0, rows}, .first = first};
    const int64_t size = bytes_of(f->kv_dtype);
    lay_out(f, rows, scratch, &c);
    c.count = count;
    c.packs_k = f->k_dim != 1 || c.wide_k != f->head_dim;
    c.packs_v = f->v_dim != 1 || c.wide_v != f->head_dim_v;
#ifdef VEC_BF16_DOT
    c.dots = f->dtype == PA_BF16 && f->kv_dtype == PA_BF16;
#endif
    c.half = count / 2 / GRAIN * GRAIN;
#ifdef PA_AMX
    /* With fewer rows memory is slower than products, and plain loads hide more of its time. */
    const int tiles = c.dots && rows > 4;
    if (tiles) c.half = 0;
    c.dots = tiles;
#endif
    const unsigned mode = flush_start();
    find_keys(&c);
    asker ask = {c.at, 0, count, 2 * c.half, c.wide_k * size, c.wide_v * size};
    c.ask = &ask;
    ask_ahead(&ask, AHEAD_BYTES / (c.wide_k * size) + 1);
    load_queries(&c);
#ifdef PA_AMX
    if (tiles) {
        run_amx(&c, to);
        flush_stop(mode);
        return;
    }
#endif
    if (f->kv_dtype == PA_F32) run_f32(&c, to);
    if (f->kv_dtype == PA_BF16) run_bf16(&c, to);
    if (f->kv_dtype == PA_F16) run_f16(&c, to);
    if (f->kv_dtype == PA_I8) run_i8(&c, to);
    flush_stop(mode);
}

/* One row from its parts; returns its lse. */
static float merge_row(const pa_forward_args *f, const pa_partial *from, int64_t stride,
                       int64_t parts, int64_t r, int64_t head, float *row) {
    const int64_t columns = pa_decode_columns(f);
    double top = f->sinks ? f->sinks[head] * LOG2_E : -INFINITY, sum = 0.0;
    const double sink = top;
    for (int64_t x = 0; x < parts; x++)
        if (from->top[x * stride + r] > top) top = from->top[x * stride + r];
    const double base = top == -INFINITY ? 0.0 : top;
    memset(row, 0, columns * sizeof(float));
    for (int64_t x = 0; x < parts; x++) {
        const float *acc = from->acc + x * stride + r * columns;
        const double part_top = from->top[x * stride + r];
        const double weight = part_top == base ? 1.0 : exp2(part_top - base);
        sum += weight * from->sum[x * stride + r];
        const vf share = v_set1((float)weight);
        for (int64_t d = 0; d < columns; d += VW)
            v_store(row + d, v_fma(share, v_load(acc + d), v_load(row + d)));
    }
    if (f->sinks) sum += exp2(sink - base);
    const vf inverse = v_set1((float)(sum == 0.0 ? 1.0 : 1.0 / sum));
    for (int64_t d = 0; d < columns; d += VW) v_store(row + d, v_mul(v_load(row + d), inverse));
    return f->lse ? (float)(top / LOG2_E + log(sum)) : 0.0f;
}

static void merge(const pa_forward_args *f, int64_t b, int64_t kv_head, const pa_partial *from,
                  int64_t parts) {
    const pa_sequence *s = f->sequences + b;
    const int64_t group = f->heads / f->kv_heads, rows = s->seqlen_q * group;
    const int64_t columns = pa_decode_columns(f);
    const float scale = f->v_scale ? f->v_scale[b * f->kv_heads + kv_head] : 1.0f;
    float row[columns], line[columns];
    for (int64_t r = 0; r < rows; r++) {
        const int64_t i = r / group, head = kv_head * group + r % group;
        const float lse = merge_row(f, from, rows * (columns + 2), parts, r, head, row);
        if (f->lse) f->lse[s->lse + head * f->lse_head + i] = lse;
        for (int64_t d = 0; d < f->head_dim_v; d++) line[d] = scale * row[v_place((int)f->kv_dtype, d)];
        store_row(f->out, f->dtype, s->out + i * f->out_row + head * f->out_head, line,
                  f->head_dim_v);
    }
}

/* Reads whole vectors of a piece of memory and nothing else: what decode is measured against. */
static float read_floats(const float *data, int64_t count) {
    vf sum[8];
    float lanes[VW], all = 0.0f;
    UNROLL for (int x = 0; x < 8; x++) sum[x] = v_set1(0.0f);
    for (int64_t i = 0; i + 8 * VW <= count; i += 8 * VW)
        UNROLL for (int x = 0; x < 8; x++) sum[x] = v_add(sum[x], v_load(data + i + x * VW));
    for (int x = 1; x < 8; x++) sum[0] = v_add(sum[0], sum[x]);
    v_store(lanes, sum[0]);
    for (int x = 0; x < VW; x++) all += lanes[x];
    return all;
}

const pa_decoder ISA_NAME(pa_decoder) = {scratch_bytes, unit, merge, read_floats};
