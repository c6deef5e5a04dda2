/* A pool of threads that spin briefly for the next call and then sleep.
 *
 * A call is a `job` on its caller's stack, listed in `jobs` while it wants help. A worker joins a
 * job under the lock, takes tasks by an atomic counter, and leaves under the lock; the caller does
 * the same and then waits until nobody is left in its job. Who runs a task never matters to it.
 */
#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <unistd.h>

/* About 10 microseconds: a decode step calls again sooner than a sleeper wakes. */
enum { SPINS = 400, MAX_WORKERS = 1023 };

typedef struct job {
    void (*task)(void *, int64_t, int64_t);
    void *context;
    int64_t count;
    int64_t places; /* threads that may still join */
    int64_t joined; /* threads that ever did, the caller included */
    atomic_llong next;
    atomic_llong inside; /* workers that have not left */
    struct job *after;
} job;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static job *jobs;
static int64_t workers, asleep;
static atomic_llong posted; /* grows with every call, for those who spin */

static inline void pause_once(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void run_tasks(job *j, int64_t thread) {
    for (;;) {
        const long long index = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed);
        if (index >= j->count) return;
        j->task(j->context, index, thread);
    }
}

/* A job with room and tasks, joined, or NULL; the lock is held. */
static job *join(int64_t *thread) {
    for (job *j = jobs; j; j = j->after)
        if (j->places > 0 && atomic_load_explicit(&j->next, memory_order_relaxed) < j->count) {
            j->places--;
            *thread = j->joined++;
            atomic_fetch_add_explicit(&j->inside, 1, memory_order_relaxed);
            return j;
        }
    return NULL;
}

static void spin_for_work(void) {
    const long long seen = atomic_load_explicit(&posted, memory_order_relaxed);
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&posted, memory_order_relaxed) != seen) return;
        pause_once();
    }
}

static void *work_forever(void *unused) {
    pthread_mutex_lock(&lock);
    for (;;) {
        int64_t thread;
        job *j = join(&thread);
        if (j) {
            pthread_mutex_unlock(&lock);
            run_tasks(j, thread);
            pthread_mutex_lock(&lock);
            /* After this, j may be gone. */
            if (atomic_fetch_sub_explicit(&j->inside, 1, memory_order_release) == 1)
                pthread_cond_broadcast(&done);
            pthread_mutex_unlock(&lock);
            spin_for_work();
            pthread_mutex_lock(&lock);
        } else {
            asleep++;
            pthread_cond_wait(&work, &lock);
            asleep--;
        }
    }
    return unused;
}

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_fork_in_parent(void) { pthread_mutex_unlock(&lock); }

/* A child has none of its parent's threads, and the jobs lie on stacks that nobody runs. */
static void after_fork_in_child(void) {
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&work, NULL);
    pthread_cond_init(&done, NULL);
    jobs = NULL;
    workers = asleep = 0;
}

static void watch_forks(void) {
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* Workers up to `wanted`, fewer where the system gives no more; the lock is held. */
static void grow(int64_t wanted) {
    sigset_t all, before;
    if (wanted > MAX_WORKERS) wanted = MAX_WORKERS;
    if (workers >= wanted) return;
    /* Signals are for the threads of the program. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (workers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work_forever, NULL)) break;
        pthread_detach(thread);
        workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void leave_list(job *j) {
    job **at = &jobs;
    while (*at != j) at = &(*at)->after;
    *at = j->after;
}

static void wait_for_helpers(job *j) {
    for (int i = 0; i < SPINS; i++) {
        if (!atomic_load_explicit(&j->inside, memory_order_acquire)) break;
        pause_once();
    }
    /* The lock even when nobody is inside: the last to leave still holds it while it signals. */
    pthread_mutex_lock(&lock);
    while (atomic_load_explicit(&j->inside, memory_order_acquire)) pthread_cond_wait(&done, &lock);
    pthread_mutex_unlock(&lock);
}

void pa_pool_run(void (*task)(void *, int64_t, int64_t), void *context, int64_t count,
                 int64_t threads) {
    if (threads > count) threads = count;
    job j = {.task = task, .context = context, .count = count, .places = threads - 1, .joined = 1};
    if (threads < 2) {
        run_tasks(&j, 0);
        return;
    }
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&lock);
    grow(threads - 1);
    j.after = jobs;
    jobs = &j;
    atomic_fetch_add_explicit(&posted, 1, memory_order_relaxed);
    for (int64_t n = 0; n < asleep && n < j.places; n++) pthread_cond_signal(&work);
    pthread_mutex_unlock(&lock);
    run_tasks(&j, 0);
    pthread_mutex_lock(&lock);
    leave_list(&j);
    pthread_mutex_unlock(&lock);
    wait_for_helpers(&j);
}

int64_t pa_pool_size(void) {
    pthread_mutex_lock(&lock);
    const int64_t size = workers;
    pthread_mutex_unlock(&lock);
    return size;
}

int64_t pa_usable_processors(void) {
#ifdef __linux__
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set)) return CPU_COUNT(&set);
#endif
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online < 1 ? 1 : online;
}
