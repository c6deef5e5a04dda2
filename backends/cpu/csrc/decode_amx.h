/* The products of decode by the AMX tile unit, where q, k and v are bfloat16.
 *
 * Scores are [keys][rows]: 16 keys as they lie in memory times the queries in pairs of dims. Values
 * are [rows][columns]: weights times values in pairs of keys. A weight is the sum of two bfloat16,
 * the rounded one and what it lacks, in two rows of one tile: 8 rows of weights fill its 16.
 */

#define TILE 512      /* elements of a bfloat16 tile */
#define TILE_ROWS 8   /* of weights in one tile */
#define PASS 64       /* columns of values whose sums stay in tiles */

/* The compiler doesn't know that tile instructions read memory: whatever they read is stored first. */
static inline void tiles_read_memory(void) { __asm__ volatile("" ::: "memory"); }

static void tiles_start(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } __attribute__((aligned(64))) shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    __asm__ volatile("" : : "r"(&shape) : "memory");
    _tile_loadconfig(&shape);
}

/* Queries as tiles [16 pairs of dims][16 rows][2], zeros where there is no row. */
static void pair_queries(const chunk *c) {
    uint32_t *to = (uint32_t *)c->pairs;
    for (int64_t row = 0; row < c->w.rows; row += 16)
        for (int64_t d = 0; d < c->wide_k; d += 32, to += TILE / 2)
            for (int64_t pair = 0; pair < 16; pair++)
                for (int64_t r = 0; r < 16; r++) {
                    uint32_t both = 0;
                    if (row + r < c->w.rows)
                        memcpy(&both, c->q_bits + (row + r) * c->wide_k + d + 2 * pair, 4);
                    to[pair * 16 + r] = both;
                }
}

/* s [rows][stride] of 4 rows and 16 keys from products [keys][16 rows]. */
static inline void turn_scores(const float *products, float *s, int64_t stride, int64_t rows) {
    vf z[4];
    /* Lane 4 g + r of z[i] is row r of key 4 g + i. */
    UNROLL for (int i = 0; i < 4; i++) {
        z[i] = _mm512_castps128_ps512(_mm_loadu_ps(products + i * 16));
        z[i] = _mm512_insertf32x4(z[i], _mm_loadu_ps(products + (4 + i) * 16), 1);
        z[i] = _mm512_insertf32x4(z[i], _mm_loadu_ps(products + (8 + i) * 16), 2);
        z[i] = _mm512_insertf32x4(z[i], _mm_loadu_ps(products + (12 + i) * 16), 3);
    }
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(z[0], z[1]));
    const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(z[2], z[3]));
    const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(z[0], z[1]));
    const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(z[2], z[3]));
    v_store(s, _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23)));
    if (rows > 1) v_store(s + stride, _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23)));
    if (rows > 2) v_store(s + 2 * stride, _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23)));
    if (rows > 3) v_store(s + 3 * stride, _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23)));
}

/* 16 rows that lie evenly: the first and the bytes between them. Others are copied to `copy`. */
static inline const char *even_rows(const char *const *rows, int64_t bytes, char *copy,
                                    int64_t *step) {
    int even = 1;
    *step = rows[1] - rows[0];
    for (int j = 2; j < 16; j++) even &= rows[j] - rows[j - 1] == *step;
    if (even) return rows[0];
    for (int j = 0; j < 16; j++) memcpy(copy + j * bytes, rows[j], bytes);
    *step = bytes;
    return copy;
}

/* p = q k for the whole chunk. */
static void multiply_keys_amx(const chunk *c) {
    const char *rows[KEYS];
    float products[2 * 16 * 16] __attribute__((aligned(64)));
    const int64_t bytes = c->wide_k * 2, steps = c->wide_k / 32;
    char copies[2][16 * bytes];
    for (int64_t j = 0; j < c->count; j += KEYS) {
        const int64_t keys = gather(c, 0, j, KEYS, rows);
        for (int64_t i = keys; i < KEYS; i++) rows[i] = rows[keys - 1];
        for (int64_t i = 0; i < keys; i += 32) {
            int64_t step[2];
            const char *k[2];
            ask_ahead(c->ask, 32);
            for (int half = 0; half < 2; half++)
                k[half] = even_rows(rows + i + 16 * half, bytes, copies[half], step + half);
            for (int64_t r = 0; r < c->w.rows; r += 16) {
                const uint16_t *q = c->pairs + r / 16 * steps * TILE;
                tiles_read_memory();
                _tile_zero(0);
                _tile_zero(1);
                for (int64_t d = 0; d < steps; d++) {
                    _tile_loadd(4, q + d * TILE, 64);
                    _tile_loadd(5, k[0] + d * 64, step[0]);
                    _tile_loadd(6, k[1] + d * 64, step[1]);
                    _tile_dpbf16ps(0, 5, 4);
                    _tile_dpbf16ps(1, 6, 4);
                }
                _tile_stored(0, products, 64);
                _tile_stored(1, products + 16 * 16, 64);
                const int64_t count = c->w.rows - r < 16 ? c->w.rows - r : 16;
                for (int64_t at = 0; at < count; at += 4)
                    for (int half = 0; half < 2; half++)
                        turn_scores(products + half * 256 + at,
                                    c->p + (r + at) * c->stride + j + i + 16 * half, c->stride,
                                    count - at);
            }
        }
    }
}

/* Weights of 32 keys of up to TILE_ROWS rows as a tile: what is rounded, then what that lacks. */
static void split_weights(const chunk *c, int64_t row, int64_t rows, uint16_t *to) {
    for (int64_t j = 0; j < c->count; j += 32, to += TILE) {
        const int64_t left = c->count - j < 32 ? c->count - j : 32;
        const __mmask16 low = (__mmask16)((1u << (left < 16 ? left : 16)) - 1);
        const __mmask16 high = (__mmask16)(left > 16 ? (1u << (left - 16)) - 1 : 0);
        for (int64_t r = 0; r < rows; r++) {
            const float *p = c->p + (row + r) * c->stride + j;
            const vf a = _mm512_maskz_loadu_ps(low, p), b = _mm512_maskz_loadu_ps(high, p + 16);
            const __m512i near = (__m512i)_mm512_cvtne2ps_pbh(b, a);
            const __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(near));
            const __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(near, 1));
            const vf lack_a = v_sub(a, _mm512_castsi512_ps(_mm512_slli_epi32(first, 16)));
            const vf lack_b = v_sub(b, _mm512_castsi512_ps(_mm512_slli_epi32(second, 16)));
            _mm512_storeu_si512(to + r * 32, near);
            _mm512_storeu_si512(to + (TILE_ROWS + r) * 32,
                                (__m512i)_mm512_cvtne2ps_pbh(lack_b, lack_a));
        }
    }
}

/* 32 keys of PASS columns as tiles in pairs of keys; a pair of vectors interleaves within lanes of
 * 128 bits, so tile 2 h + x holds columns 32 h + 8 l + 4 x .. + 3 at 4 l. */
static inline void pair_values(const char *const *rows, int64_t bytes, uint16_t *to) {
    for (int pair = 0; pair < 16; pair++)
        for (int h = 0; h < PASS / 32; h++) {
            const __m512i even = _mm512_loadu_si512(rows[2 * pair] + bytes + 64 * h);
            const __m512i odd = _mm512_loadu_si512(rows[2 * pair + 1] + bytes + 64 * h);
            uint16_t *at = to + 2 * h * TILE + pair * 32;
            _mm512_store_si512(at, _mm512_unpacklo_epi16(even, odd));
            _mm512_store_si512(at + TILE, _mm512_unpackhi_epi16(even, odd));
        }
}

/* Sums of 32 columns, [16][16] of each tile, where v_place has them in a row of acc. */
static inline void place_sums(const float *sums, int64_t r, float *to) {
    const float *high = sums + 256;
    const vf a = v_add(v_load(sums + r * 16), v_load(sums + (TILE_ROWS + r) * 16));
    const vf b = v_add(v_load(high + r * 16), v_load(high + (TILE_ROWS + r) * 16));
    const __m512i even = _mm512_setr_epi32(0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    v_store(to, _mm512_permutex2var_ps(a, even, b));
    v_store(to + 16, _mm512_permutex2var_ps(a, odd, b));
}

/* acc = p v of TILE_ROWS rows and PASS columns for the whole chunk. */
static void add_pass(const chunk *c, int64_t row, int64_t rows, int64_t column, float *acc) {
    const char *at[KEYS];
    uint16_t pairs[4 * TILE] __attribute__((aligned(64)));
    float sums[4 * 16 * 16] __attribute__((aligned(64)));
    const int64_t columns = c->wide_v - column < PASS ? c->wide_v - column : PASS;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t j = 0; j < c->count; j += KEYS) {
        const int64_t keys = gather(c, 1, j, KEYS, at);
        for (int64_t i = keys; i < KEYS; i++) at[i] = at[keys - 1];
        for (int64_t i = 0; i < keys; i += 32) {
            if (row == 0 && column == 0) ask_ahead(c->ask, 32);
            pair_values(at + i, column * 2, pairs);
            tiles_read_memory();
            _tile_loadd(4, c->split + (j + i) / 32 * TILE, 64);
            _tile_loadd(5, pairs, 64);
            _tile_loadd(6, pairs + TILE, 64);
            _tile_dpbf16ps(0, 4, 5);
            _tile_dpbf16ps(1, 4, 6);
            _tile_loadd(5, pairs + 2 * TILE, 64);
            _tile_loadd(6, pairs + 3 * TILE, 64);
            _tile_dpbf16ps(2, 4, 5);
            _tile_dpbf16ps(3, 4, 6);
        }
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < columns; d += 32)
            place_sums(sums + d / 32 * 512, r, acc + (row + r) * c->columns + column + d);
}

/* acc = p v for the whole chunk. */
static void add_values_amx(const chunk *c, float *acc) {
    for (int64_t row = 0; row < c->w.rows; row += TILE_ROWS) {
        const int64_t rows = c->w.rows - row < TILE_ROWS ? c->w.rows - row : TILE_ROWS;
        memset(c->split, 0, round_up(c->count, 32) / 32 * TILE * 2);
        split_weights(c, row, rows, c->split);
        for (int64_t column = 0; column < c->wide_v; column += PASS)
            add_pass(c, row, rows, column, acc);
    }
}

static void run_amx(const chunk *c, const pa_partial *to) {
    tiles_start();
    pair_queries(c);
    multiply_keys_amx(c);
    const int hidden = weigh(c, to);
    add_values_amx(c, to->acc);
    _tile_release();
    /* What a weight lacks times inf would be NaN. */
    if (!all_finite(c, to->acc)) add_values(c, PA_BF16, to->acc);
    if (hidden && !all_finite(c, to->acc)) add_visible(c, to->acc);
}
