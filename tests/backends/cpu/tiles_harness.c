/* The tiles of every instruction set in one library, to be chosen by number, over plain threads. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

typedef struct {
    void (*function)(void *, int64_t, int64_t);
    void *context;
    int64_t tasks;
    atomic_long next;
} work;

typedef struct {
    work *shared;
    int64_t thread;
    pthread_t handle;
} worker;

static void *work_off(void *argument) {
    worker *self = argument;
    for (;;) {
        const int64_t task = atomic_fetch_add(&self->shared->next, 1);
        if (task >= self->shared->tasks) return NULL;
        self->shared->function(self->shared->context, task, self->thread);
    }
}

void pa_pool_run(void (*function)(void *, int64_t, int64_t), void *context, int64_t tasks,
                 int64_t threads) {
    work shared = {function, context, tasks, 0};
    worker workers[64];
    for (int64_t i = 0; i < threads; i++) workers[i] = (worker){&shared, i, 0};
    for (int64_t i = 1; i < threads; i++)
        pthread_create(&workers[i].handle, NULL, work_off, &workers[i]);
    work_off(&workers[0]);
    for (int64_t i = 1; i < threads; i++) pthread_join(workers[i].handle, NULL);
}

#include "prefill.c"

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
extern const pa_tiles pa_tiles_sse42, pa_tiles_avx2, pa_tiles_avx512, pa_tiles_amx;
static const pa_tiles *const plain[] = {&pa_tiles_sse42, &pa_tiles_avx2, &pa_tiles_avx512,
                                        &pa_tiles_avx512};
static const pa_tiles *const bfloat16_tiles[] = {&pa_tiles_sse42, &pa_tiles_avx2, &pa_tiles_avx512,
                                                 &pa_tiles_amx};
/* Linux gives a process the tile registers when it asks for them; 0 when it may use them. */
int harness_ask_for_amx(void) { return (int)syscall(SYS_arch_prctl, 0x1023, 18); }
#else
extern const pa_tiles pa_tiles_neon;
static const pa_tiles *const plain[] = {&pa_tiles_neon};
static const pa_tiles *const bfloat16_tiles[] = {&pa_tiles_neon};
#endif

int harness_isa;

int pa_prefill_forward(const pa_forward_args *f, int64_t bfloat16, int64_t threads) {
    return pa_forward(f, (bfloat16 ? bfloat16_tiles : plain)[harness_isa], threads);
}

int pa_prefill_backward(const pa_backward_args *a, int64_t bfloat16, int64_t threads) {
    return pa_backward(a, (bfloat16 ? bfloat16_tiles : plain)[harness_isa], threads);
}
