/* Prefill and backward over the thread pool: calls cut into units, each of which one thread runs. */

#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "pool.h"
#include "tiles.h"

typedef struct {
    int64_t b, kv_head, first, rows, order, owner;
    double cost;
} unit;

typedef struct {
    const pa_tiles *tiles;
    const pa_forward_args *f;
    const pa_backward_args *a;
    const unit *units;
    float *memory;
    int64_t floats; /* of one thread */
    int64_t *finite; /* of one unit each */
    const int64_t *owned; /* NULL or [owners + 1]: the first unit of each owner */
} job;

enum { OK = 0, NOT_FINITE = 1, OUT_OF_MEMORY = -1 };

enum { UNITS_PER_THREAD = 4, MAX_BLOCKS = 24, MAX_SPLITS = 4 };

/* A unit's accumulators and queries are to stay in a core's second-level cache, of which keys take
 * the rest: the more rows, the less often keys are packed. */
static int64_t unit_bytes(void) {
    static atomic_llong known;
    long long bytes = atomic_load_explicit(&known, memory_order_relaxed);
    if (bytes) return bytes;
    bytes = 512 * 1024;
#ifdef _SC_LEVEL2_CACHE_SIZE
    const long long cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (cache / 8 * 5 > bytes) bytes = cache / 8 * 5;
#endif
    atomic_store_explicit(&known, bytes, memory_order_relaxed);
    return bytes;
}

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static int64_t rows_of(const pa_forward_args *f, int64_t b) {
    return f->sequences[b].seqlen_q * (f->heads / f->kv_heads);
}

/* Costly units first, so that threads end together. */
static int compare(const void *left, const void *right) {
    const unit *a = left, *b = right;
    if (a->cost != b->cost) return a->cost < b->cost ? 1 : -1;
    return a->order < b->order ? -1 : a->order > b->order;
}

static int64_t rows_per_unit(const pa_forward_args *f, const pa_tiles *tiles, int64_t threads) {
    int64_t blocks = 0, most = unit_bytes() / (4 * tiles->lanes * (f->head_dim + f->head_dim_v));
    if (most > MAX_BLOCKS) most = MAX_BLOCKS;
    for (int64_t b = 0; b < f->batch; b++)
        blocks += f->kv_heads * ceil_div(rows_of(f, b), tiles->lanes);
    const int64_t even = threads == 1 ? most : blocks / (threads * UNITS_PER_THREAD);
    if (most > even) most = even;
    return tiles->lanes * (most < 1 ? 1 : most);
}

/* About how many keys the middle row of a unit sees. */
static double keys_of(const pa_forward_args *f, const unit *u) {
    const pa_sequence *s = f->sequences + u->b;
    const double middle = (u->first + 0.5 * u->rows) / (f->heads / f->kv_heads);
    const double place = middle + s->seqlen_k - s->seqlen_q;
    double from = f->left < 0 ? 0.0 : place - f->left;
    double to = f->right < 0 ? s->seqlen_k : place + f->right + 1.0;
    if (from < 0.0) from = 0.0;
    if (to > s->seqlen_k) to = s->seqlen_k;
    return to > from ? to - from : 0.0;
}

/* Every block of rows as units, or only their number where units is NULL. */
static int64_t cut_rows(const pa_forward_args *f, unit *units) {
    int64_t n = 0;
    for (int64_t b = 0; b < f->batch; b++)
        for (int64_t h = 0; h < f->kv_heads; h++)
            for (int64_t first = 0; first < rows_of(f, b); first += f->block_m, n++) {
                const int64_t left = rows_of(f, b) - first;
                unit u = {b, h, first, left < f->block_m ? left : f->block_m, n, 0, 0.0};
                u.cost = u.rows * keys_of(f, &u);
                if (units) units[n] = u;
            }
    return n;
}

/* Every split of the keys of every kv head; `first` holds the split. */
static int64_t cut_keys(const pa_forward_args *f, int64_t splits, unit *units) {
    int64_t n = 0;
    for (int64_t b = 0; b < f->batch; b++)
        for (int64_t h = 0; h < f->kv_heads; h++)
            for (int64_t split = 0; split < splits; split++, n++)
                units[n] = (unit){b, h, split, rows_of(f, b), n, 0,
                                  (double)rows_of(f, b) * f->sequences[b].seqlen_k};
    return n;
}

/* By owner, and in order among an owner's. */
static int compare_owners(const void *left, const void *right) {
    const unit *a = left, *b = right;
    if (a->owner != b->owner) return a->owner < b->owner ? -1 : 1;
    return a->order < b->order ? -1 : a->order > b->order;
}

/* Units that add to the same part of the gradient of the bias have one owner, which runs them one
 * after another. Returns the number of owners; first[o] is the first unit of owner o. */
static int64_t cut_owners(const pa_backward_args *a, unit *units, int64_t count, int64_t *first) {
    const int64_t *stride = a->dbias_stride, heads = a->f->kv_heads;
    int64_t owners = 0;
    for (int64_t n = 0; n < count; n++) {
        unit *u = units + n;
        u->owner = stride[0] ? u->b : 0;
        u->owner = u->owner * heads + (stride[1] ? u->kv_head : 0);
        u->owner = u->owner * a->splits + (stride[3] ? u->first : 0);
    }
    qsort(units, count, sizeof(unit), compare_owners);
    for (int64_t n = 0; n < count; n++)
        if (!n || units[n].owner != units[n - 1].owner) first[owners++] = n;
    first[owners] = count;
    return owners;
}

static float *thread_memory(job *j, int64_t floats, int64_t threads) {
    j->floats = ceil_div(floats, 16) * 16;
    j->memory = aligned_alloc(64, (size_t)(j->floats * threads) * sizeof(float));
    return j->memory;
}

static void run_forward(void *context, int64_t task, int64_t thread) {
    const job *j = context;
    const unit *u = j->units + task;
    j->tiles->forward_unit(j->f, u->b, u->kv_head, u->first, u->rows,
                           j->memory + thread * j->floats);
}

/* out and lse of every row; 0, or -1 when there is no memory for it. */
int pa_forward(const pa_forward_args *args, const pa_tiles *tiles, int64_t threads) {
    pa_forward_args f = *args;
    f.block_m = rows_per_unit(&f, tiles, threads);
    f.block_n = f.block_n ? ceil_div(f.block_n, 32) * 32 : tiles->block_n;
    const int64_t count = cut_rows(&f, NULL);
    if (count == 0) return OK;
    if (threads > count) threads = count;
    job j = {.tiles = tiles, .f = &f};
    unit *units = malloc(count * sizeof(unit));
    thread_memory(&j, tiles->forward_floats(&f), threads);
    if (units && j.memory) {
        cut_rows(&f, units);
        qsort(units, count, sizeof(unit), compare);
        j.units = units;
        pa_pool_run(run_forward, &j, count, threads);
    }
    const int result = units && j.memory ? OK : OUT_OF_MEMORY;
    free(j.memory);
    free(units);
    return result;
}

static void run_backward(void *context, int64_t task, int64_t thread) {
    const job *j = context;
    const unit *u = j->units + task;
    j->finite[task] = j->tiles->backward_unit(j->a, u->b, u->kv_head, u->first,
                                              j->memory + thread * j->floats);
}

static void run_owner(void *context, int64_t owner, int64_t thread) {
    const job *j = context;
    for (int64_t n = j->owned[owner]; n < j->owned[owner + 1]; n++) run_backward(context, n, thread);
}

static void run_sum(void *context, int64_t task, int64_t thread) {
    const job *j = context;
    const int64_t b = task / j->f->kv_heads;
    (void)thread;
    j->tiles->backward_sum(j->a, b, task % j->f->kv_heads, 0, rows_of(j->f, b));
}

/* Into how many parts to cut the keys of one head: by the shape alone, as it orders the sums. */
static int64_t splits_of(const pa_forward_args *f, const pa_tiles *tiles) {
    int64_t longest = 1, splits = MAX_SPLITS;
    for (int64_t b = 0; b < f->batch; b++)
        if (f->sequences[b].seqlen_k > longest) longest = f->sequences[b].seqlen_k;
    if (splits > 64 / (f->batch * f->kv_heads)) splits = 64 / (f->batch * f->kv_heads);
    if (splits > ceil_div(longest, tiles->chunk_keys))
        splits = ceil_div(longest, tiles->chunk_keys);
    return splits < 1 ? 1 : splits;
}

static int run_backward_units(pa_backward_args *a, job *j, unit *units, int64_t *parts,
                              int64_t count, int64_t threads) {
    const pa_forward_args *f = a->f;
    int64_t floats = 0, finite = 1;
    for (int64_t b = 0; b < f->batch; b++) {
        parts[b] = floats;
        floats += f->kv_heads * a->splits * ceil_div(rows_of(f, b), j->tiles->lanes)
                  * j->tiles->lanes * j->tiles->backward_columns(f);
    }
    a->dq_part = parts;
    a->dq_parts = malloc((size_t)(floats + 1) * sizeof(float));
    if (!a->dq_parts) return OUT_OF_MEMORY;
    cut_keys(f, a->splits, units);
    j->units = units;
    if (a->dbias) {
        int64_t *first = j->finite + count;
        const int64_t owners = cut_owners(a, units, count, first);
        j->owned = first;
        pa_pool_run(run_owner, j, owners, threads);
    } else {
        qsort(units, count, sizeof(unit), compare);
        pa_pool_run(run_backward, j, count, threads);
    }
    pa_pool_run(run_sum, j, f->batch * f->kv_heads, threads);
    free(a->dq_parts);
    for (int64_t n = 0; n < count; n++) finite &= j->finite[n];
    return finite ? OK : NOT_FINITE;
}

/* dq, dk, dv of every row and key; 1 when an input was not finite and they are to be discarded. */
int pa_backward(const pa_backward_args *args, const pa_tiles *tiles, int64_t threads) {
    pa_backward_args a = *args;
    if (a.f->batch == 0) return OK;
    a.splits = splits_of(a.f, tiles);
    const int64_t count = a.f->batch * a.f->kv_heads * a.splits;
    if (threads > count) threads = count;
    job j = {.tiles = tiles, .f = a.f, .a = &a};
    unit *units = malloc(count * sizeof(unit));
    int64_t *parts = malloc((a.f->batch + 2 * count + 1) * sizeof(int64_t));
    thread_memory(&j, tiles->backward_floats(a.f), threads);
    int result = OUT_OF_MEMORY;
    if (units && parts && j.memory) {
        j.finite = parts + a.f->batch;
        result = run_backward_units(&a, &j, units, parts, count, threads);
    }
    free(j.memory);
    free(parts);
    free(units);
    return result;
}
