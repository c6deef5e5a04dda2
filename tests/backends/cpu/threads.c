/* What a thread sanitizer watches: the pool and decode under many callers and more threads than
 * there are processors. Exits with 1 when a task is lost or doubled or a result depends on threads.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "library.h"
#include "pool.h"

enum { CALLERS = 6, ROUNDS = 60, TASKS = 97, KEYS = 300, HEADS = 4, DIM = 32 };

static atomic_int failures;

static void fail(const char *what) {
    fprintf(stderr, "failed: %s\n", what);
    atomic_fetch_add(&failures, 1);
}

typedef struct {
    int runs[TASKS];
    atomic_int busy[16];
} tally;

static void count_task(void *context, int64_t index, int64_t thread) {
    tally *t = context;
    if (atomic_fetch_add(&t->busy[thread], 1)) fail("two threads with one number");
    t->runs[index]++; /* not atomic: a task that runs twice at once is a race */
    atomic_fetch_sub(&t->busy[thread], 1);
}

static void use_pool(int64_t threads) {
    tally t = {0};
    pa_pool_run(count_task, &t, TASKS, threads);
    for (int n = 0; n < TASKS; n++)
        if (t.runs[n] != 1) fail("a task that didn't run once");
}

static float q[2 * HEADS * DIM], kv[2 * KEYS * DIM];

static void decode(int64_t threads, float *out, float *lse) {
    pa_decode_args a = {0};
    pa_forward_args *f = &a.f;
    f->q = q, f->k = kv, f->v = kv, f->out = out, f->lse = lse;
    f->q_row = f->out_row = HEADS * DIM, f->q_head = f->k_row = f->v_row = f->out_head = DIM;
    f->q_dim = f->k_dim = f->v_dim = f->lse_head = f->kv_heads = 1;
    f->batch = 2, f->heads = HEADS, f->head_dim = f->head_dim_v = DIM;
    f->left = f->right = -1, f->softmax_scale = 0.2, f->block_n = 16;
    a.layout = (pa_layout){.q_batch = HEADS * DIM, .out_batch = HEADS * DIM, .lse_batch = HEADS,
                           .k_batch = KEYS * DIM, .v_batch = KEYS * DIM, .seqlen_q = 1,
                           .seqlen_k = KEYS};
    if (pa_decode_on(&a, threads)) fail("decode");
}

static void *call(void *unused) {
    float out[2 * HEADS * DIM], lse[2 * HEADS], want[2 * HEADS * DIM];
    decode(1, want, lse);
    for (int n = 0; n < ROUNDS; n++) {
        use_pool(1 + n % 8);
        memset(out, 0xFF, sizeof out);
        decode(1 + n % 8, out, lse);
        if (memcmp(out, want, sizeof out)) fail("a result that depends on the threads");
    }
    return unused;
}

int main(int count, char **names) {
    pthread_t callers[CALLERS];
    for (size_t n = 0; n < sizeof kv / sizeof *kv; n++) kv[n] = (float)(n * 7919 % 1000) / 500 - 1;
    for (size_t n = 0; n < sizeof q / sizeof *q; n++) q[n] = (float)(n * 104729 % 1000) / 500 - 1;
    if (pa_use(count > 1 ? names[1] : "")) fail("no such instruction set");
    for (int n = 0; n < CALLERS; n++) pthread_create(callers + n, NULL, call, NULL);
    for (int n = 0; n < CALLERS; n++) pthread_join(callers[n], NULL);
    /* Thread sanitizers don't follow a fork into threads: here a child uses none. */
    const pid_t child = fork();
    if (child == 0) {
        use_pool(1);
        _exit(pa_pool_size() != 0 || atomic_load(&failures));
    }
    int status = 1;
    if (waitpid(child, &status, 0) != child || status) fail("a forked child");
    return atomic_load(&failures) != 0;
}
