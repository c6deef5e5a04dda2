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
} pa_decoder;

static inline int64_t pa_decode_columns(const pa_forward_args *f) {
    return (f->head_dim_v + 31) / 32 * 32;
}

int pa_decode_run(const pa_forward_args *f, const pa_decoder *decoder, int64_t threads);

#endif
