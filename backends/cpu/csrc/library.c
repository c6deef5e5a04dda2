/* The library's functions, and the choice of the instruction set they run with. */

#include "library.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "decode.h"
#include "pool.h"
#include "tiles.h"

typedef struct {
    const char *name;
    int (*usable)(void);
    const pa_decoder *decoder;
    const pa_tiles *tiles;
    const pa_tiles *bfloat16_tiles; /* where every operand is bfloat16 */
} variant;

#if defined(__x86_64__)

extern const pa_decoder pa_decoder_sse4, pa_decoder_avx2, pa_decoder_avx512, pa_decoder_avx512_bf16,
    pa_decoder_amx;
extern const pa_tiles pa_tiles_sse4, pa_tiles_avx2, pa_tiles_avx512, pa_tiles_amx;

static int has_sse4(void) { return __builtin_cpu_supports("sse4.2"); }

static int has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
           && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static int has_avx512_bf16(void) {
    unsigned a, b, c, d;
    return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5));
}

/* AMX's tiles are a process's to ask for; Linux grants them to threads that start afterwards. */
static int has_amx(void) {
    unsigned a, b, c, d;
    const unsigned tile = 1u << 24, bf16 = 1u << 22;
    if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if ((d & (tile | bf16)) != (tile | bf16)) return 0;
#if defined(__linux__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
#else
    return 0;
#endif
}

/* Widest last. */
static const variant variants[] = {
    {"sse4", has_sse4, &pa_decoder_sse4, &pa_tiles_sse4, &pa_tiles_sse4},
    {"avx2", has_avx2, &pa_decoder_avx2, &pa_tiles_avx2, &pa_tiles_avx2},
    {"avx512", has_avx512, &pa_decoder_avx512, &pa_tiles_avx512, &pa_tiles_avx512},
    {"avx512_bf16", has_avx512_bf16, &pa_decoder_avx512_bf16, &pa_tiles_avx512, &pa_tiles_avx512},
    {"amx", has_amx, &pa_decoder_amx, &pa_tiles_avx512, &pa_tiles_amx},
};

#else

extern const pa_decoder pa_decoder_neon;
extern const pa_tiles pa_tiles_neon;

static int has_neon(void) { return 1; }

static const variant variants[] = {
    {"neon", has_neon, &pa_decoder_neon, &pa_tiles_neon, &pa_tiles_neon},
};

#endif

enum { VARIANTS = sizeof variants / sizeof *variants };

static _Atomic(const variant *) chosen;

int pa_use(const char *name) {
    for (int n = VARIANTS - 1; n >= 0; n--)
        if ((!*name || !strcmp(name, variants[n].name)) && variants[n].usable()) {
            atomic_store(&chosen, variants + n);
            return 0;
        }
    return -1;
}

const char *pa_variant(void) {
    const variant *now = atomic_load(&chosen);
    return now ? now->name : "";
}

const char *pa_variant_name(int64_t index) { return index < VARIANTS ? variants[index].name : NULL; }

int pa_variant_usable(int64_t index) { return index < VARIANTS && variants[index].usable(); }

int64_t pa_decode_args_bytes(void) { return sizeof(pa_decode_args); }

int64_t pa_interface(void) { return PA_INTERFACE; }

/* No more threads than the caller may run on at once. */
static int64_t usable(int64_t threads) {
    const int64_t processors = threads > 1 ? pa_usable_processors() : 1;
    return threads < processors ? threads : processors;
}

int pa_decode(const pa_decode_args *args, int64_t threads) {
    return pa_decode_on(args, usable(threads));
}

int pa_decode_on(const pa_decode_args *args, int64_t threads) {
    return pa_decode_run(&args->f, &args->layout, atomic_load(&chosen)->decoder, threads);
}

typedef struct {
    const float *data;
    int64_t count;
    float (*read)(const float *, int64_t);
    float *sums;
} reading;

/* A megabyte: long enough for the processor to read ahead, short enough to share evenly. */
enum { READ_FLOATS = 1 << 18 };

static void read_piece(void *context, int64_t piece, int64_t thread) {
    const reading *r = context;
    const int64_t first = piece * READ_FLOATS, left = r->count - first;
    r->sums[thread * 16] += r->read(r->data + first, left < READ_FLOATS ? left : READ_FLOATS);
}

float pa_read(const float *data, int64_t count, int64_t threads) {
    enum { MOST = 256 };
    float sums[16 * MOST] = {0}, all = 0.0f;
    reading r = {data, count, atomic_load(&chosen)->decoder->read, sums};
    threads = usable(threads);
    if (threads > MOST) threads = MOST;
    pa_pool_run(read_piece, &r, (count + READ_FLOATS - 1) / READ_FLOATS, threads);
    for (int n = 0; n < MOST; n++) all += sums[16 * n];
    return all;
}

static const pa_tiles *tiles_for(int64_t bfloat16) {
    const variant *now = atomic_load(&chosen);
    return bfloat16 ? now->bfloat16_tiles : now->tiles;
}

int pa_prefill_forward(const pa_forward_args *args, int64_t bfloat16, int64_t threads) {
    return pa_forward(args, tiles_for(bfloat16), usable(threads));
}

int pa_prefill_backward(const pa_backward_args *args, int64_t bfloat16, int64_t threads) {
    return pa_backward(args, tiles_for(bfloat16), usable(threads));
}
