/* The vectors that kernels are written with, for the instruction set this file is compiled for.
 *
 * A vf holds VW floats. Comparisons are ordered: NaN is never less, and v_max(a, b) is b where
 * either is NaN. v_load2_* turn 2 VW elements into two
 * vectors: of bfloat16 the even and the odd ones (which costs no shuffle), else the first and the
 * second VW; v_place says where an element of a row goes.
 *
 * A vu holds VW 32-bit words. u_multiply gives the 64-bit products of the even ones, in whose place
 * u_high puts the odd ones and zeros in theirs; u_join takes the even words of both. v_top24 is the
 * upper 24 bits of each word as a float.
 */
#ifndef PORTATTN_VEC_H
#define PORTATTN_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "tiles.h"

#if defined(__AVX512F__)
#include "vec_avx512.h"
#elif defined(__AVX2__)
#include "vec_avx2.h"
#elif defined(__SSE4_2__)
#include "vec_sse4.h"
#elif defined(__aarch64__)
#include "vec_neon.h"
#else
#error "no vectors are written for this instruction set"
#endif

/* ISA is the variant's name; its functions carry it as a suffix. */
#define ISA_JOIN(name, isa) name##_##isa
#define ISA_EXPAND(name, isa) ISA_JOIN(name, isa)
#define ISA_NAME(name) ISA_EXPAND(name, ISA)

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define LOG2_E 1.4426950408889634

/* Results too small for a normal number become 0 in between: an operation on a subnormal costs x86
 * processors a hundred cycles. What is loaded keeps its value. */
static inline unsigned flush_start(void) {
#if defined(__SSE4_2__)
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | _MM_FLUSH_ZERO_ON);
    return before;
#else
    return 0;
#endif
}

static inline void flush_stop(unsigned before) {
#if defined(__SSE4_2__)
    _mm_setcsr(before);
#else
    (void)before;
#endif
}

/* 2^x with an error of 2 units in the last place; 0 below the normal numbers, NaN for NaN and inf.
 * Coefficients: minimax on [-0.5, 0.5] in relative error, rounded to float one after the other. */
static inline vf v_exp2(vf x) {
    /* Kept out of the subnormals. The order of the operands lets NaN through. */
    const vf lowest = v_set1(-126.0f), near = v_max(lowest, x), n = v_round(near);
    const vf r = v_sub(near, n);
    vf p = v_set1(0.001327647129073739f);
    p = v_fma(p, r, v_set1(0.009675540961325169f));
    p = v_fma(p, r, v_set1(0.05550713092088699f));
    p = v_fma(p, r, v_set1(0.24022120237350464f));
    p = v_fma(p, r, v_set1(0.6931469440460205f));
    p = v_fma(p, r, v_set1(1.0000001192092896f));
    return v_select_lt(x, lowest, v_set1(0.0f), v_scale2(p, n));
}

/* tanh: an odd polynomial near 0, (1 - e) / (1 + e) with e = exp(-2 |x|) elsewhere. */
static inline vf v_tanh(vf x) {
    const vf size = v_abs(x), square = v_mul(x, x), one = v_set1(1.0f), zero = v_set1(0.0f);
    vf p = v_set1(-0.005717045161873102f);
    p = v_fma(p, square, v_set1(0.02065058797597885f));
    p = v_fma(p, square, v_set1(-0.05374349653720856f));
    p = v_fma(p, square, v_set1(0.13331490755081177f));
    p = v_fma(p, square, v_set1(-0.3333328366279602f));
    vf small = v_fma(v_mul(p, square), x, x);
    vf e = v_exp2(v_mul(size, v_set1((float)(-2.0 * LOG2_E))));
    vf large = v_div(v_sub(one, e), v_add(one, e));
    large = v_select_lt(x, zero, v_sub(zero, large), large);
    return v_select_lt(size, v_set1(0.625f), small, large);
}

/* 2 VW elements of a row; dtype is a constant wherever this is inlined. */
static ALWAYS_INLINE void v_load2(const int dtype, const void *row, int64_t at, vf *a, vf *b) {
    if (dtype == PA_BF16) {
        v_load2_bf16((const uint16_t *)row + at, a, b);
    } else if (dtype == PA_F16) {
        *a = v_load_f16((const uint16_t *)row + at);
        *b = v_load_f16((const uint16_t *)row + at + VW);
    } else if (dtype == PA_I8) {
        *a = v_load_i8((const int8_t *)row + at);
        *b = v_load_i8((const int8_t *)row + at + VW);
    } else {
        *a = v_load((const float *)row + at);
        *b = v_load((const float *)row + at + VW);
    }
}

/* Where v_load2 puts element d of a row, counted in floats. */
static inline int64_t v_place(int dtype, int64_t d) {
    if (dtype != PA_BF16) return d;
    const int64_t inside = d % (2 * VW);
    return d - inside + inside / 2 + (inside % 2) * VW;
}

#endif
