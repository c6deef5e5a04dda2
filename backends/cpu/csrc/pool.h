/* The library's own threads: tasks of one call at a time each, taken in order by who is free. */
#ifndef PORTATTN_POOL_H
#define PORTATTN_POOL_H

#include <stdint.h>

/* Tasks 0 .. count - 1 run once each, on at most `threads` threads of which the caller is one, then
 * this returns. `thread` counts the threads of the call from 0. Any thread may call, also from a
 * child after fork. Where threads can't be had, fewer do all the work. */
void pa_pool_run(void (*task)(void *context, int64_t index, int64_t thread), void *context,
                 int64_t count, int64_t threads);

/* Threads that this process holds, busy or asleep. */
int64_t pa_pool_size(void);

/* The caller's affinity: how many processors it may run on. */
int64_t pa_usable_processors(void);

#endif
