/* The library's own threads: see pool.c. */
#ifndef PORTATTN_POOL_H
#define PORTATTN_POOL_H

#include <stdint.h>

typedef void (*pa_task)(void *context, int64_t task, int64_t thread);

/* Runs function(context, task, thread) once for every task in [0, tasks) and returns when all have
 * run. The caller is thread 0; at most `threads` take part, each by a number below `threads`. */
void pa_pool_run(pa_task function, void *context, int64_t tasks, int64_t threads);

#endif
