/* Vectors of float32, one layer per instruction set: the only file that names its intrinsics. */

#include <math.h>
#include <stdint.h>

#define LOG2_E 1.4426950408889634

#if defined(__AVX512F__)
#include <immintrin.h>
#define VW 16
#define VEC_REGISTERS 32
typedef __m512 vf;
static inline vf v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
static inline vf v_set1(float a) { return _mm512_set1_ps(a); }
static inline vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf v_abs(vf a) { return _mm512_abs_ps(a); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf v_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf v_ldexp(vf a, vf n) { return _mm512_scalef_ps(a, n); }
static inline vf v_select_lt(vf a, vf b, vf yes, vf no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
#ifdef PA_AMX
#define ISA_NAME(name) name##_amx
#else
#define ISA_NAME(name) name##_avx512
#endif

#elif defined(__AVX2__)
#include <immintrin.h>
#define VW 8
#define VEC_REGISTERS 16
#define ISA_NAME(name) name##_avx2
typedef __m256 vf;
static inline vf v_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void v_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
static inline vf v_set1(float a) { return _mm256_set1_ps(a); }
static inline vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf v_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf v_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf v_ldexp(vf a, vf n) {
    __m256i shifted = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), shifted));
}
static inline vf v_select_lt(vf a, vf b, vf yes, vf no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}

#elif defined(__SSE4_2__)
#include <nmmintrin.h>
#define VW 4
#define VEC_REGISTERS 16
#define ISA_NAME(name) name##_sse42
typedef __m128 vf;
static inline vf v_load(const float *p) { return _mm_loadu_ps(p); }
static inline void v_store(float *p, vf a) { _mm_storeu_ps(p, a); }
static inline vf v_set1(float a) { return _mm_set1_ps(a); }
static inline vf v_add(vf a, vf b) { return _mm_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm_div_ps(a, b); }
static inline vf v_max(vf a, vf b) { return _mm_max_ps(a, b); }
static inline vf v_abs(vf a) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), a); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
static inline vf v_round(vf a) { return _mm_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf v_ldexp(vf a, vf n) {
    __m128i shifted = _mm_slli_epi32(_mm_cvtps_epi32(n), 23);
    return _mm_castsi128_ps(_mm_add_epi32(_mm_castps_si128(a), shifted));
}
static inline vf v_select_lt(vf a, vf b, vf yes, vf no) {
    return _mm_blendv_ps(no, yes, _mm_cmplt_ps(a, b));
}

#elif defined(__ARM_NEON)
#include <arm_neon.h>
#define VW 4
#define VEC_REGISTERS 32
#define ISA_NAME(name) name##_neon
typedef float32x4_t vf;
static inline vf v_load(const float *p) { return vld1q_f32(p); }
static inline void v_store(float *p, vf a) { vst1q_f32(p, a); }
static inline vf v_set1(float a) { return vdupq_n_f32(a); }
static inline vf v_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf v_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf v_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf v_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf v_max(vf a, vf b) { return vmaxq_f32(a, b); }
static inline vf v_abs(vf a) { return vabsq_f32(a); }
static inline vf v_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf v_round(vf a) { return vrndnq_f32(a); }
static inline vf v_ldexp(vf a, vf n) {
    int32x4_t shifted = vshlq_n_s32(vcvtq_s32_f32(n), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), shifted));
}
static inline vf v_select_lt(vf a, vf b, vf yes, vf no) { return vbslq_f32(vcltq_f32(a, b), yes, no); }
#endif

/* Results too small for a normal number become 0 in between: an accumulator that decays to a subnormal
 * costs x86 processors a hundred cycles per operation. What is loaded keeps its value. */
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

/* 2^x to 1.5 units in the last place for x <= 127: 0 below 2^-126, NaN of NaN.
 * The polynomial is the minimax fit of 2^r on |r| <= 1/2. */
static inline vf v_exp2(vf x) {
    /* Kept out of the subnormals, which some processors take a hundred cycles for. The order of the
     * operands lets NaN through. */
    const vf lowest = v_set1(-126.0f), near = v_max(lowest, x), n = v_round(near);
    const vf r = v_sub(near, n);
    vf p = v_fma(v_set1(0.001327647129073739f), r, v_set1(0.009675540961325169f));
    p = v_fma(p, r, v_set1(0.05550713092088699f));
    p = v_fma(p, r, v_set1(0.24022120237350464f));
    p = v_fma(p, r, v_set1(0.6931469440460205f));
    p = v_fma(p, r, v_set1(1.0000001192092896f));
    return v_select_lt(x, lowest, v_set1(0.0f), v_ldexp(p, n));
}

/* tanh: an odd minimax polynomial up to 0.625, (1 - e^-2|x|) / (1 + e^-2|x|) beyond. */
static inline vf v_tanh(vf x) {
    const vf size = v_abs(x), square = v_mul(x, x), one = v_set1(1.0f), zero = v_set1(0.0f);
    vf p = v_fma(v_set1(-0.005717045161873102f), square, v_set1(0.02065058797597885f));
    p = v_fma(p, square, v_set1(-0.05374349653720856f));
    p = v_fma(p, square, v_set1(0.13331490755081177f));
    p = v_fma(p, square, v_set1(-0.3333328366279602f));
    const vf small = v_fma(v_mul(p, square), x, x);
    const vf e = v_exp2(v_mul(size, v_set1((float)(-2.0 * LOG2_E))));
    const vf large = v_div(v_sub(one, e), v_add(one, e));
    const vf turned = v_select_lt(x, zero, v_sub(zero, large), large);
    return v_select_lt(size, v_set1(0.625f), small, turned);
}
