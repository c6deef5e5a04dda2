/* Products of small tiles: one register-blocked kernel for every product of both passes.
 *
 *     c[i][j] = decay[i] c[i][j] + sum_k a[i a_row + k a_step] b[k b_row + j]
 *
 * Each element of a is broadcast, each row of b is whole vectors: no operand needs a transpose that
 * a choice of a_row and a_step doesn't give. With 32 registers 24 hold sums, with 16, 12.
 */

#if VEC_REGISTERS >= 32
#define ROWS_BY_2 12
#define ROWS_BY_3 8
#else
#define ROWS_BY_2 6
#define ROWS_BY_3 4
#endif

typedef struct {
    const float *a, *b;
    float *c;
    int64_t a_row, a_step, b_row, c_row, depth;
} product;

static inline __attribute__((always_inline)) void multiply(const product *t, const float *decay,
                                                           int add, const int rows,
                                                           const int vectors) {
    vf sum[ROWS_BY_2][3];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++) {
        sum[i][j] = add ? v_load(t->c + i * t->c_row + j * VW) : v_set1(0.0f);
        if (decay) sum[i][j] = v_mul(sum[i][j], v_set1(decay[i]));
    }
    const float *a = t->a, *b = t->b;
    for (int64_t k = 0; k < t->depth; k++, a += t->a_step, b += t->b_row) {
        vf line[3];
        UNROLL for (int j = 0; j < vectors; j++) line[j] = v_load(b + j * VW);
        UNROLL for (int i = 0; i < rows; i++) {
            vf one = v_set1(a[i * t->a_row]);
            UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = v_fma(one, line[j], sum[i][j]);
        }
    }
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++)
        v_store(t->c + i * t->c_row + j * VW, sum[i][j]);
}

/* c = a b: ROWS_BY_3 rows, LANES columns. */
static __attribute__((noinline)) void multiply_lanes(const product *t) {
    multiply(t, NULL, 0, ROWS_BY_3, LANE_VECTORS);
}

/* c = decay c + a b: ROWS_BY_2 rows, PANEL columns. */
static __attribute__((noinline)) void multiply_panel(const product *t, const float *decay) {
    multiply(t, decay, 1, ROWS_BY_2, 2);
}

/* c += a b: ROWS_BY_2 rows, PANEL columns. */
static __attribute__((noinline)) void add_panel(const product *t) {
    multiply(t, NULL, 1, ROWS_BY_2, 2);
}
