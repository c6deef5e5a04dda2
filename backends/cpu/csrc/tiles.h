/* The arguments of prefill and backward, and what every instruction set's tiles share. */
#ifndef PORTATTN_TILES_H
#define PORTATTN_TILES_H

#include <stdint.h>

enum { PA_F32 = 0, PA_BF16 = 1, PA_F16 = 2, PA_I8 = 3 };

/* One sequence: offsets of its first query row and key in elements, and its lengths. */
typedef struct {
    int64_t q, out, lse, k, v;
    int64_t seqlen_q, seqlen_k;
    int64_t first_key; /* paged: the place of key 0 among the keys of its table row */
} pa_sequence;

/* Strides count elements. Rows of out and lse are contiguous; their heads may lie anywhere. */
typedef struct {
    const void *q, *k, *v;
    void *out;
    float *lse;
    int64_t q_row, q_head, q_dim, k_row, k_head, k_dim, v_row, v_head, v_dim;
    int64_t out_row, out_head, lse_head;
    int64_t dtype, kv_dtype;
    int64_t batch, heads, kv_heads, head_dim, head_dim_v;
    const pa_sequence *sequences;
    const int32_t *block_table; /* NULL: keys lie k_row apart */
    int64_t table_row, page_size, k_page, v_page;
    int64_t left, right; /* -1: unbounded */
    double softmax_scale, softcap, dropout_p;
    const float *slopes; /* NULL or [batch or 1, heads] */
    int64_t slopes_batch;
    const void *bias; /* NULL or strided [batch, heads, seqlen_q, seqlen_k], 0 where broadcast */
    int64_t bias_dtype, bias_stride[4];
    const uint8_t *mask;
    int64_t mask_stride[4];
    const float *sinks; /* NULL or [heads] */
    const float *k_scale, *v_scale; /* decode: NULL or [batch, kv_heads], times what k and v hold */
    uint64_t seed;
    int64_t dropout_offset;
    int64_t block_m, block_n; /* rows and keys per tile */
} pa_forward_args;

/* What the backward adds to the arguments of its forward, whose out and lse it reads.
 *
 * grad_lse is addressed as lse is, or NULL. dq, dk, dv have the dtypes of q, k and v, contiguous
 * rows, and one sequence per entry of `gradients` (q, k, v: offsets in dq, dk, dv; out: in grad_out).
 * dbias is added to, with stride 0 along what its bias is broadcast over.
 */
typedef struct {
    const pa_forward_args *f;
    const void *grad_out;
    const float *grad_lse;
    void *dq, *dk, *dv;
    int64_t g_row, g_head, g_dim, dq_row, dq_head, dk_row, dk_head, dv_row, dv_head;
    const pa_sequence *gradients;
    int64_t splits; /* parts of the keys that sum dq on their own */
    float *dq_parts; /* sequence by sequence: [kv_heads][splits][padded rows][columns of q] */
    const int64_t *dq_part; /* [batch] offsets in dq_parts */
    float *dbias; /* NULL or strided [batch, heads, seqlen_q, seqlen_k] */
    int64_t dbias_stride[4];
    double *dsinks; /* NULL or [batch, heads]: the part of each sequence */
} pa_backward_args;

/* The tiles of one instruction set. Units are independent of each other and of who runs them. */
typedef struct {
    int64_t lanes;      /* rows per block */
    int64_t block_n;    /* keys per tile unless asked otherwise */
    int64_t chunk_keys; /* keys that one unit of the backward holds */
    int64_t (*forward_floats)(const pa_forward_args *f); /* memory of one unit */
    void (*forward_unit)(const pa_forward_args *f, int64_t b, int64_t kv_head, int64_t first,
                         int64_t rows, float *memory);
    int64_t (*backward_floats)(const pa_forward_args *f);
    int64_t (*backward_columns)(const pa_forward_args *f); /* of a row of dq_parts */
    int64_t (*backward_unit)(const pa_backward_args *a, int64_t b, int64_t kv_head, int64_t split,
                             float *memory);
    void (*backward_sum)(const pa_backward_args *a, int64_t b, int64_t kv_head, int64_t first,
                         int64_t count);
} pa_tiles;

#endif
