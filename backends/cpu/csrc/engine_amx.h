/* Products of bfloat16 by the AMX tile unit, sums in float32: what forward.h computes with where q,
 * k and v are bfloat16 and the processor has AMX.
 *
 * A tile holds 16 rows of 64 bytes. c += a b multiplies a [16][32] by b [16 pairs][16][2], whose
 * pairs run along the summed dimension. So s = k q takes k as it lies in memory and q in pairs;
 * acc = v p, which is [columns][LANES] per block, takes v transposed and p in pairs.
 */

/* Decaying acc is a pass over memory here: rare, when maxima may rise by 2^8 before it happens. */
#define HEADROOM 8.0f
#define BLOCK_N 256
#define TILE 512 /* elements of a bfloat16 tile */

typedef struct {
    uint16_t *q;       /* [blocks][depth / 32][2 halves of lanes] tiles in pairs */
    uint16_t *k, *v;   /* [block_n][depth]; [columns][block_n] */
    uint16_t *p;       /* [block_n / 32][2 halves of lanes] tiles in pairs */
    float *s;          /* [block_n][LANES] */
    float *acc;        /* [blocks][columns][LANES] */
    float *top, *sum;  /* [rows] maximum and sum */
    float *row;        /* 16 finished rows */
    uint16_t *lines;   /* 32 rows of v or q, padded with zeros */
    uint8_t *finite;   /* [block_n] whether a key's v is */
    int64_t depth, columns; /* head_dim and head_dim_v in whole tiles */
} forward_tiles;

static int64_t lay_out(const pa_forward_args *f, float *memory, forward_tiles *t) {
    float *at = memory;
    t->depth = round_up(f->head_dim, 32);
    t->columns = round_up(f->head_dim_v, 32);
    const int64_t widest = t->depth > t->columns ? t->depth : t->columns;
    t->s = at, at += f->block_n * LANES;
    t->acc = at, at += f->block_m * t->columns;
    t->top = at, at += f->block_m;
    t->sum = at, at += f->block_m;
    t->row = at, at += 16 * t->columns;
    t->q = (uint16_t *)at, at += f->block_m * t->depth / 2;
    t->k = (uint16_t *)at, at += f->block_n * t->depth / 2;
    t->v = (uint16_t *)at, at += f->block_n * t->columns / 2;
    t->p = (uint16_t *)at, at += f->block_n * LANES / 2;
    t->lines = (uint16_t *)at, at += 16 * widest;
    t->finite = (uint8_t *)at;
    return at - memory + round_up(f->block_n, 4) / 4;
}

/* The compiler doesn't know that tile instructions read memory: whatever they read is stored first. */
static inline void tiles_read_memory(void) { __asm__ volatile("" ::: "memory"); }

static void engine_start(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } __attribute__((aligned(64))) shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    __asm__ volatile("" : : "r"(&shape) : "memory");
    _tile_loadconfig(&shape);
}

static void engine_stop(void) { _tile_release(); }

/* One step of a 16 x 16 transpose: entries `half` apart trade places across the diagonal. */
static inline void transpose_16x16(__m512i r[16]) {
    __m512i t[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) UNROLL for (int u = 0; u < 2; u++) {
        r[i + 2 * u] = _mm512_unpacklo_epi64(t[i + u], t[i + 2 + u]);
        r[i + 2 * u + 1] = _mm512_unpackhi_epi64(t[i + u], t[i + 2 + u]);
    }
    /* r[4 b + c] holds column 4 l + c of rows 4 b .. 4 b + 3 in its 128-bit lane l. */
    UNROLL for (int c = 0; c < 4; c++) {
        __m512i low01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
        __m512i odd01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xDD);
        __m512i low23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        __m512i odd23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xDD);
        t[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
        t[8 + c] = _mm512_shuffle_i32x4(low01, low23, 0xDD);
        t[4 + c] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(odd01, odd23, 0xDD);
    }
    UNROLL for (int i = 0; i < 16; i++) r[i] = t[i];
}

/* `count` elements, zeros up to `padded`. */
static inline void copy_line(uint16_t *to, const void *from, int64_t index, int64_t step,
                             int64_t count, int64_t padded) {
    const uint16_t *data = (const uint16_t *)from + index;
    if (step == 1)
        memcpy(to, data, count * 2);
    else
        for (int64_t i = 0; i < count; i++) to[i] = data[i * step];
    memset(to + count, 0, (padded - count) * 2);
}

static inline int line_is_finite(const uint16_t *line, int64_t count) {
    const __m512i inf = _mm512_set1_epi16(0x7F80);
    __mmask32 bad = 0;
    for (int64_t d = 0; d < count; d += 32)
        bad |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(_mm512_loadu_si512(line + d), inf), inf);
    return !bad;
}

/* Rows of q or of grad_out: where they lie, how long they are and how long in whole tiles. */
typedef struct {
    const void *data;
    int64_t first, row, head, dim, count, padded;
} row_source;

/* The block's rows as lines [LANES][padded], and from there in pairs of columns. */
static void pair_columns(const block *w, const row_source *from, uint16_t *lines, uint16_t *to) {
    for (int64_t x = 0; x < LANES; x++) {
        uint16_t *line = lines + x * from->padded;
        const int64_t at = from->first + query_of(w, x) * from->row + head_of(w, x) * from->head;
        if (x < w->rows)
            copy_line(line, from->data, at, from->dim, from->count, from->padded);
        else
            memset(line, 0, from->padded * 2);
    }
    for (int64_t d = 0; d < from->padded; d += 32)
        for (int64_t half = 0; half < 2; half++, to += TILE) {
            __m512i r[16];
            const uint16_t *line = lines + 16 * half * from->padded + d;
            UNROLL for (int x = 0; x < 16; x++)
                r[x] = _mm512_loadu_si512(line + x * from->padded);
            transpose_16x16(r);
            UNROLL for (int x = 0; x < 16; x++) _mm512_storeu_si512(to + x * 32, r[x]);
        }
}

static void pack_queries(const block *w, forward_tiles *t, int64_t at) {
    const pa_forward_args *f = w->f;
    const row_source q = {f->q, w->sequence->q, f->q_row, f->q_head, f->q_dim,
                          f->head_dim, t->depth};
    pair_columns(w, &q, t->lines, t->q + at * t->depth);
}

/* Rows 2 x and 2 x + 1 of 16 columns of lines, in pairs. */
static inline void pair_lines(__m512i r[16], const uint16_t *lines, int64_t padded) {
    UNROLL for (int x = 0; x < 16; x++) {
        const uint16_t *even = lines + 2 * x * padded, *odd = even + padded;
        __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)even));
        __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)odd));
        r[x] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    }
}

/* 32 lines [32][columns] as columns `key` .. key + 31 of to [columns][stride]. */
static void transpose_lines(uint16_t *to, int64_t stride, int64_t key, const uint16_t *lines,
                            int64_t columns) {
    for (int64_t d = 0; d < columns; d += 16) {
        __m512i r[16];
        pair_lines(r, lines + d, columns);
        transpose_16x16(r);
        UNROLL for (int x = 0; x < 16; x++) _mm512_storeu_si512(to + (d + x) * stride + key, r[x]);
    }
}

static void pack_keys(const block *w, forward_tiles *t, int64_t first_key, int64_t count) {
    const pa_forward_args *f = w->f;
    const int64_t padded = round_up(count, 32);
    memset(t->finite + count, 1, padded - count);
    for (int64_t j = 0; j < padded; j++) {
        int64_t k, v;
        uint16_t *line = t->lines + j % 32 * t->columns;
        if (j < count) {
            key_offsets(f, w->b, w->kv_head, first_key + j, &k, &v);
            copy_line(t->k + j * t->depth, f->k, k, f->k_dim, f->head_dim, t->depth);
            copy_line(line, f->v, v, f->v_dim, f->head_dim_v, t->columns);
            t->finite[j] = (uint8_t)line_is_finite(line, t->columns);
        } else {
            memset(t->k + j * t->depth, 0, t->depth * 2);
            memset(line, 0, t->columns * 2);
        }
        if (j % 32 == 31) transpose_lines(t->v, f->block_n, j - 31, t->lines, t->columns);
    }
}

/* A pair of operands of tiles: bytes between the rows of a, elements from one step to the next. */
typedef struct {
    const uint16_t *a, *b;
    int64_t a_bytes, a_step, b_half, b_step, steps;
} tile_product;

/* c [32][32] = (c or 0) + the sum over steps of a [32][32] b, c's rows c_row floats apart. */
static inline void multiply_tiles(const tile_product *t, float *c, int64_t c_row, int add) {
    const int64_t bytes = c_row * 4;
    tiles_read_memory();
    if (add) {
        _tile_loadd(0, c, bytes);
        _tile_loadd(1, c + 16, bytes);
        _tile_loadd(2, c + 16 * c_row, bytes);
        _tile_loadd(3, c + 16 * c_row + 16, bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    const uint16_t *a = t->a, *b = t->b;
    for (int64_t k = 0; k < t->steps; k++, a += t->a_step, b += t->b_step) {
        _tile_loadd(4, a, t->a_bytes);
        _tile_loadd(5, a + 8 * t->a_bytes, t->a_bytes);
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + t->b_half, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, bytes);
    _tile_stored(1, c + 16, bytes);
    _tile_stored(2, c + 16 * c_row, bytes);
    _tile_stored(3, c + 16 * c_row + 16, bytes);
}

/* c [keys][LANES] = rows q, for keys from .. to - 1 of rows [keys][depth] and q in pairs. */
static void multiply_rows(float *c, const uint16_t *rows, const uint16_t *q, int64_t depth,
                          int64_t from, int64_t to) {
    for (int64_t j = from / 32 * 32; j < to; j += 32) {
        const tile_product p = {rows + j * depth, q, depth * 2, 32, TILE, 2 * TILE, depth / 32};
        multiply_tiles(&p, c + j * LANES, LANES, 0);
    }
}

static void multiply_scores(const pa_forward_args *f, forward_tiles *t, int64_t at, int64_t from,
                            int64_t to) {
    (void)f;
    multiply_rows(t->s, t->k, t->q + at * t->depth, t->depth, from, to);
}

static inline int touched_are_finite(const forward_tiles *t, int64_t from, int64_t to) {
    const int64_t first = from / 32 * 32, last = round_up(to, 32);
    return !memchr(t->finite + first, 0, last - first);
}

/* Zeros before and after weights [keys][LANES] of keys [from, to), up to whole tiles. */
static void clear_around(float *weights, int64_t from, int64_t to) {
    const int64_t first = from / 32 * 32, last = round_up(to, 32);
    memset(weights + first * LANES, 0, (from - first) * LANES * sizeof(float));
    memset(weights + to * LANES, 0, (last - to) * LANES * sizeof(float));
}

/* weights [keys][LANES] of the tiles around keys [from, to), rounded, in pairs of keys. */
static void pair_weights(uint16_t *to_tiles, const float *weights, int64_t from, int64_t to) {
    uint16_t order[32];
    for (int i = 0; i < 32; i++) order[i] = (uint16_t)(i / 2 + i % 2 * 16);
    const __m512i interleave = _mm512_loadu_si512(order);
    for (int64_t j = from / 32 * 32; j < round_up(to, 32); j += 2)
        for (int64_t half = 0; half < 2; half++) {
            const float *even = weights + j * LANES + 16 * half, *odd = even + LANES;
            __m512i both = (__m512i)_mm512_cvtne2ps_pbh(v_load(odd), v_load(even));
            uint16_t *tile = to_tiles + (j / 32 * 2 + half) * TILE;
            _mm512_storeu_si512(tile + j % 32 * 16, _mm512_permutexvar_epi16(interleave, both));
        }
}

static void decay_acc(float *acc, int64_t columns, const float *decay) {
    vf low = v_load(decay), high = v_load(decay + 16), one = v_set1(1.0f);
    if (!(_mm512_cmp_ps_mask(low, one, _CMP_NEQ_UQ) | _mm512_cmp_ps_mask(high, one, _CMP_NEQ_UQ)))
        return;
    for (float *at = acc; at < acc + columns * LANES; at += LANES) {
        v_store(at, v_mul(v_load(at), low));
        v_store(at + 16, v_mul(v_load(at + 16), high));
    }
}

static void add_values(const pa_forward_args *f, forward_tiles *t, int64_t at, const float *decay,
                       int64_t from, int64_t to) {
    const int64_t first = from / 32 * 32, tiles = round_up(to, 32) / 32 - from / 32;
    float *acc = t->acc + at * t->columns;
    clear_around(t->s, from, to);
    pair_weights(t->p, t->s, from, to);
    decay_acc(acc, t->columns, decay);
    for (int64_t d = 0; d < t->columns; d += 32) {
        const tile_product p = {t->v + d * f->block_n + first, t->p + first / 32 * 2 * TILE,
                                f->block_n * 2, 32, TILE, 2 * TILE, tiles};
        multiply_tiles(&p, acc + d * LANES, LANES, 1);
    }
}

static inline float *acc_at(const forward_tiles *t, int64_t row, int64_t d) {
    return t->acc + (row / LANES * t->columns + d) * LANES + row % LANES;
}

static inline float value_at(const pa_forward_args *f, const forward_tiles *t, int64_t key,
                             int64_t d) {
    return bf16_value(t->v[d * f->block_n + key]);
}

static const float *finished_row(forward_tiles *t, int64_t at, int64_t x, const float *share) {
    const float *acc = t->acc + at * t->columns;
    for (int64_t d = 0; x % 16 == 0 && d < t->columns; d += 16) {
        __m512i r[16];
        const vf scale = v_load(share + x);
        UNROLL for (int i = 0; i < 16; i++)
            r[i] = _mm512_castps_si512(v_mul(v_load(acc + (d + i) * LANES + x), scale));
        transpose_16x16(r);
        UNROLL for (int i = 0; i < 16; i++) _mm512_storeu_si512(t->row + i * t->columns + d, r[i]);
    }
    return t->row + x % 16 * t->columns;
}
