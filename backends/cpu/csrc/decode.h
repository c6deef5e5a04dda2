/* Decode: few query rows against many keys, at the speed of memory. What all variants share.
 *
 * A unit is one kv head of one sequence against one chunk of keys. Chunks start at multiples of
 * `block_n` of a sequence's keys and their results are merged in their order, so neither the number
 * of threads nor the rest of the batch changes a bit of the result.
 */
#ifndef PORTATTN_DECODE_H
#define PORTATTN_DECODE_H

#include "tiles.h"

/* The results of one unit. Row r is query r / group of head r % group within the group. */
typedef struct {
    float *acc; /* [rows][columns]: sum_j 2^(s_j - top) v_j, head_dim_v values a row */
    float *top; /* [rows] maximum score, times log2(e) */
    float *sum; /* [rows] sum_j 2^(s_j - top) */
} pa_partial;

/* The decode kernel of one instruction set. */
typedef struct {
    int64_t (*scratch_bytes)(const pa_forward_args *f, int64_t rows);
    void (*unit)(const pa_forward_args *f, int64_t b, int64_t kv_head, int64_t first, int64_t count,
                 const pa_partial *to, void *scratch);
    /* out and lse of one kv head from its units' results, `parts` of them side by side. */
    void (*merge)(const pa_forward_args *f, int64_t b, int64_t kv_head, const pa_partial *from,
                  int64_t parts);
    float (*read)(const float *data, int64_t count);
} pa_decoder;

static inline int64_t pa_decode_columns(const pa_forward_args *f) {
    return (f->head_dim_v + 31) / 32 * 32;
}

/* Where the sequences of a call lie, as its tensors say it. Strides count elements.
 *
 * cu_seqlens_q: queries are packed, else seqlen_q a sequence. first_key and last_key: sequence b has
 * keys [first_key[b], last_key[b]) of row `row[b]` (0 and b where NULL). cu_seqlens_k: keys are
 * packed, or on pages counted by it. None of these: seqlen_k a sequence.
 */
typedef struct {
    int64_t q_batch, k_batch, v_batch, out_batch, lse_batch, seqlen_q, seqlen_k;
    const int32_t *cu_seqlens_q, *cu_seqlens_k, *last_key, *first_key, *row;
} pa_layout;

/* out and lse of every row, `layout` in place of the arguments' sequences; 0, or -1 when there is no
 * memory for it. */
int pa_decode_run(const pa_forward_args *f, const pa_layout *layout, const pa_decoder *decoder,
                  int64_t threads);

#endif
