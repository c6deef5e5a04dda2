/* Decode over the thread pool: which units there are, and who merges their results. */

#include <stdatomic.h>
#include <stdlib.h>

#include "decode.h"
#include "pool.h"

/* The units of one sequence: `parts` chunks from `chunk` on, for each kv head. */
typedef struct {
    int64_t first_unit, chunk, parts, rows;
    int64_t floats; /* where its partial results start */
} share;

typedef struct {
    const pa_forward_args *f;
    const pa_decoder *decoder;
    const share *shares;
    atomic_llong *left; /* [batch * kv_heads] units still to be done */
    float *results;
    char *scratch;
    int64_t scratch_bytes;
    int heads_first; /* all heads of a chunk, then the next chunk */
} job;

/* The keys that some query of sequence b sees through the window: [from, to). */
static void seen_keys(const pa_forward_args *f, int64_t b, int64_t *from, int64_t *to) {
    const pa_sequence *s = f->sequences + b;
    const int64_t offset = s->seqlen_k - s->seqlen_q, last = s->seqlen_q - 1 + offset;
    *from = f->left < 0 || offset - f->left < 0 ? 0 : offset - f->left;
    *to = f->right < 0 || last + f->right >= s->seqlen_k ? s->seqlen_k : last + f->right + 1;
    if (*to < *from) *to = *from;
}

static int64_t result_floats(const pa_forward_args *f, int64_t rows) {
    return rows * (pa_decode_columns(f) + 2);
}

/* A row that sees nothing still needs its out and lse: every sequence has at least one unit. */
static int64_t cut(const pa_forward_args *f, share *shares, int64_t *floats, int64_t *most_rows) {
    int64_t units = 0;
    *floats = *most_rows = 0;
    for (int64_t b = 0; b < f->batch; b++) {
        share *s = shares + b;
        int64_t from, to;
        seen_keys(f, b, &from, &to);
        s->rows = f->sequences[b].seqlen_q * (f->heads / f->kv_heads);
        s->chunk = from / f->block_n;
        s->parts = s->rows == 0 ? 0 : to > from ? (to - 1) / f->block_n - s->chunk + 1 : 1;
        s->first_unit = units;
        s->floats = *floats;
        units += s->parts * f->kv_heads;
        *floats += s->parts * f->kv_heads * result_floats(f, s->rows);
        if (s->rows > *most_rows) *most_rows = s->rows;
    }
    return units;
}

static int64_t sequence_of(const job *j, int64_t unit) {
    int64_t low = 0, high = j->f->batch;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (j->shares[middle].first_unit <= unit)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static pa_partial partial_at(const job *j, const share *s, int64_t index) {
    const int64_t columns = pa_decode_columns(j->f);
    pa_partial p;
    p.acc = j->results + s->floats + index * result_floats(j->f, s->rows);
    p.top = p.acc + s->rows * columns;
    p.sum = p.top + s->rows;
    return p;
}

static void run_unit(void *context, int64_t unit, int64_t thread) {
    const job *j = context;
    const pa_forward_args *f = j->f;
    const int64_t b = sequence_of(j, unit);
    const share *s = j->shares + b;
    const int64_t index = unit - s->first_unit;
    const int64_t kv_head = j->heads_first ? index % f->kv_heads : index / s->parts;
    const int64_t part = j->heads_first ? index / f->kv_heads : index % s->parts;
    int64_t from, to, first = (s->chunk + part) * f->block_n;
    seen_keys(f, b, &from, &to);
    if (to > first + f->block_n) to = first + f->block_n;
    if (first < from) first = from;
    const pa_partial own = partial_at(j, s, kv_head * s->parts + part);
    j->decoder->unit(f, b, kv_head, first, to > first ? to - first : 0, &own,
                     j->scratch + thread * j->scratch_bytes);
    /* Release what this thread wrote, acquire what the others did. */
    atomic_llong *left = j->left + b * f->kv_heads + kv_head;
    if (atomic_fetch_sub_explicit(left, 1, memory_order_acq_rel) == 1) {
        const pa_partial head = partial_at(j, s, kv_head * s->parts);
        j->decoder->merge(f, b, kv_head, &head, s->parts);
    }
}

/* Sequence b as offsets. */
static pa_sequence sequence_at(const pa_forward_args *f, const pa_layout *l, int64_t b) {
    const int64_t row = l->row ? l->row[b] : b;
    pa_sequence s = {.q = b * l->q_batch, .out = b * l->out_batch, .lse = b * l->lse_batch};
    s.seqlen_q = l->seqlen_q;
    s.seqlen_k = l->seqlen_k;
    if (l->cu_seqlens_q) {
        const int64_t first = l->cu_seqlens_q[b];
        s.q = first * f->q_row;
        s.out = first * f->out_row;
        s.lse = first;
        s.seqlen_q = l->cu_seqlens_q[b + 1] - first;
    }
    int64_t place = 0, base = row;
    if (l->last_key) {
        place = l->first_key ? l->first_key[b] : 0;
        s.seqlen_k = l->last_key[b] - place;
    } else if (l->cu_seqlens_k) {
        place = f->block_table ? 0 : l->cu_seqlens_k[b];
        s.seqlen_k = l->cu_seqlens_k[b + 1] - l->cu_seqlens_k[b];
        base = 0;
    }
    if (s.seqlen_k < 0) s.seqlen_k = 0;
    s.first_key = place;
    s.k = base * l->k_batch + place * f->k_row;
    s.v = base * l->v_batch + place * f->v_row;
    return s;
}

static int run_units(job *j, share *shares, int64_t threads) {
    const pa_forward_args *f = j->f;
    int64_t floats, rows;
    const int64_t units = cut(f, shares, &floats, &rows);
    if (threads > units) threads = units;
    if (threads < 1) threads = 1;
    j->shares = shares;
    /* What lies together is read together: the page tables of its addresses stay in cache. */
    j->heads_first = f->block_table || f->k_head < f->block_n * f->k_row;
    j->left = (atomic_llong *)(shares + f->batch);
    for (int64_t b = 0; b < f->batch; b++)
        for (int64_t h = 0; h < f->kv_heads; h++)
            atomic_init(j->left + b * f->kv_heads + h, shares[b].parts);
    j->scratch_bytes = (j->decoder->scratch_bytes(f, rows) + 63) / 64 * 64;
    const size_t result_bytes = ((size_t)floats * sizeof(float) + 63) / 64 * 64;
    char *memory = aligned_alloc(64, result_bytes + (size_t)(threads * j->scratch_bytes) + 64);
    if (!memory) return -1;
    j->results = (float *)memory;
    j->scratch = memory + result_bytes;
    pa_pool_run(run_unit, j, units, threads);
    free(memory);
    return 0;
}

int pa_decode_run(const pa_forward_args *args, const pa_layout *layout, const pa_decoder *decoder,
                  int64_t threads) {
    pa_forward_args f = *args;
    job j = {.f = &f, .decoder = decoder};
    const size_t batch = (size_t)f.batch, heads = batch * (size_t)f.kv_heads;
    const size_t bytes = batch * (sizeof(share) + sizeof(pa_sequence)) + heads * sizeof(atomic_llong);
    if (!heads) return 0;
    share *shares = malloc(bytes);
    if (!shares) return -1;
    pa_sequence *sequences = (pa_sequence *)((char *)shares + bytes - batch * sizeof(pa_sequence));
    for (int64_t b = 0; b < f.batch; b++) sequences[b] = sequence_at(&f, layout, b);
    f.sequences = sequences;
    const int result = run_units(&j, shares, threads);
    free(shares);
    return result;
}
