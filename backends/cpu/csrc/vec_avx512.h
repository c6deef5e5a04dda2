/* AVX-512 (F, BW, DQ, VL): 16 lanes, 32 registers; with AVX512-BF16, dot products of pairs. */
#include <immintrin.h>

#define VW 16
#define VEC_REGISTERS 32

typedef __m512 vf;

static inline vf v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
static inline vf v_set1(float a) { return _mm512_set1_ps(a); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf v_abs(vf a) { return _mm512_abs_ps(a); }
static inline vf v_round(vf a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* a < b ? x : y */
static inline vf v_select_lt(vf a, vf b, vf x, vf y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}

/* a 2^n for whole n. */
static inline vf v_scale2(vf a, vf n) { return _mm512_scalef_ps(a, n); }

typedef __m512i vu;

static inline vu u_load(const uint32_t *p) { return _mm512_loadu_si512(p); }
static inline vu u_set1(uint32_t a) { return _mm512_set1_epi32((int)a); }
static inline vu u_multiply(vu a, vu b) { return _mm512_mul_epu32(a, b); }
static inline vu u_high(vu a) { return _mm512_srli_epi64(a, 32); }
static inline vu u_xor(vu a, vu b) { return _mm512_xor_si512(a, b); }
static inline vu u_join(vu even, vu odd) {
    return _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
}
static inline vf v_top24(vu a) { return _mm512_cvtepi32_ps(_mm512_srli_epi32(a, 8)); }

/* The sums of four vectors' lanes. */
static inline void v_sum4(vf a, vf b, vf c, vf d, float *to) {
    vf ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vf cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512d left = _mm512_castps_pd(ab), right = _mm512_castps_pd(cd);
    vf all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(left, right)),
                           _mm512_castpd_ps(_mm512_unpackhi_pd(left, right)));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

static inline void v_load2_bf16(const uint16_t *p, vf *even, vf *odd) {
    __m512i x = _mm512_loadu_si512(p);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xFFFF0000)));
}

static inline vf v_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

static inline vf v_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

#ifdef __AVX512BF16__
#define VEC_BF16_DOT 1
/* c + a b, two products of bfloat16 a lane. */
static inline vf v_dot_bf16(const uint16_t *a, const uint16_t *b, vf c) {
    return _mm512_dpbf16_ps(c, (__m512bh)_mm512_loadu_si512(a), (__m512bh)_mm512_loadu_si512(b));
}
#endif
