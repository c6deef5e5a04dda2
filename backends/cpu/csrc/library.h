/* What the library exports: plain C, called without Python's lock. */
#ifndef PORTATTN_LIBRARY_H
#define PORTATTN_LIBRARY_H

#include "decode.h"
#include "tiles.h"

/* Grows with every change of a structure or function that callers see. */
#define PA_INTERFACE 2

/* Uses the named instruction set, or the widest one for "". -1: the processor doesn't have it. */
int pa_use(const char *name);

/* The instruction set in use, "" before pa_use. */
const char *pa_variant(void);

/* The instruction sets that are compiled in, narrowest first; NULL behind the last. */
const char *pa_variant_name(int64_t index);
int pa_variant_usable(int64_t index);

int64_t pa_interface(void);

typedef struct {
    pa_forward_args f; /* its sequences are ignored */
    pa_layout layout;
} pa_decode_args;

/* sizeof(pa_decode_args) */
int64_t pa_decode_args_bytes(void);

/* out of every row, and lse unless it is NULL, by the kernel for few query rows, which has no dropout;
 * block_n is the chunk of keys. -1: out of memory. */
int pa_decode(const pa_decode_args *args, int64_t threads);

/* The same on as many threads as are asked for, even where processors are fewer. */
int pa_decode_on(const pa_decode_args *args, int64_t threads);

/* out and lse of every row in tiles. `bfloat16`: every operand is. -1: out of memory. */
int pa_prefill_forward(const pa_forward_args *args, int64_t bfloat16, int64_t threads);

/* Gradients in tiles. 1: an input was not finite, the results are to be discarded. */
int pa_prefill_backward(const pa_backward_args *args, int64_t bfloat16, int64_t threads);

/* Reads memory as decode does and nothing else: the rate that decode is measured against. Returns the
 * sum of the floats, so that no compiler leaves the reading out. */
float pa_read(const float *data, int64_t count, int64_t threads);

/* Of prefill.c. */
int pa_forward(const pa_forward_args *args, const pa_tiles *tiles, int64_t threads);
int pa_backward(const pa_backward_args *args, const pa_tiles *tiles, int64_t threads);

#endif
