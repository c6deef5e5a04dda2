/* SSE4.2: 4 lanes, 16 registers, no fused multiply-add, no half-precision conversions. */
#include <immintrin.h>

#define VW 4
#define VEC_REGISTERS 16

typedef __m128 vf;

static inline vf v_load(const float *p) { return _mm_loadu_ps(p); }
static inline void v_store(float *p, vf a) { _mm_storeu_ps(p, a); }
static inline vf v_set1(float a) { return _mm_set1_ps(a); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
static inline vf v_add(vf a, vf b) { return _mm_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm_div_ps(a, b); }
static inline vf v_max(vf a, vf b) { return _mm_max_ps(a, b); }
static inline vf v_abs(vf a) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), a); }
static inline vf v_round(vf a) {
    return _mm_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* a < b ? x : y */
static inline vf v_select_lt(vf a, vf b, vf x, vf y) {
    return _mm_blendv_ps(y, x, _mm_cmplt_ps(a, b));
}

/* a 2^n for whole n from -126 to 127. */
static inline vf v_scale2(vf a, vf n) {
    __m128i exponent = _mm_add_epi32(_mm_cvtps_epi32(n), _mm_set1_epi32(127));
    return _mm_mul_ps(a, _mm_castsi128_ps(_mm_slli_epi32(exponent, 23)));
}

typedef __m128i vu;

static inline vu u_load(const uint32_t *p) { return _mm_loadu_si128((const __m128i *)p); }
static inline vu u_set1(uint32_t a) { return _mm_set1_epi32((int)a); }
static inline vu u_multiply(vu a, vu b) { return _mm_mul_epu32(a, b); }
static inline vu u_high(vu a) { return _mm_srli_epi64(a, 32); }
static inline vu u_xor(vu a, vu b) { return _mm_xor_si128(a, b); }
static inline vu u_join(vu even, vu odd) {
    return _mm_blend_epi16(even, _mm_slli_epi64(odd, 32), 0xCC);
}
static inline vf v_top24(vu a) { return _mm_cvtepi32_ps(_mm_srli_epi32(a, 8)); }

/* The sums of four vectors' lanes. */
static inline void v_sum4(vf a, vf b, vf c, vf d, float *to) {
    _mm_storeu_ps(to, _mm_hadd_ps(_mm_hadd_ps(a, b), _mm_hadd_ps(c, d)));
}

static inline void v_load2_bf16(const uint16_t *p, vf *even, vf *odd) {
    __m128i x = _mm_loadu_si128((const __m128i *)p);
    *even = _mm_castsi128_ps(_mm_slli_epi32(x, 16));
    *odd = _mm_castsi128_ps(_mm_and_si128(x, _mm_set1_epi32((int)0xFFFF0000)));
}

static inline vf v_load_f16(const uint16_t *p) {
    __m128i x = _mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i *)p));
    __m128i sign = _mm_slli_epi32(_mm_and_si128(x, _mm_set1_epi32(0x8000)), 16);
    __m128i rest = _mm_slli_epi32(_mm_and_si128(x, _mm_set1_epi32(0x7FFF)), 13);
    /* The exponent is rebased by a multiplication, which also normalises subnormals. */
    vf value = _mm_mul_ps(_mm_castsi128_ps(rest), _mm_set1_ps(0x1p112f));
    __m128i special = _mm_cmpgt_epi32(rest, _mm_set1_epi32((0x7C00 << 13) - 1));
    special = _mm_and_si128(special, _mm_set1_epi32(0x7F800000));
    return _mm_or_ps(value, _mm_castsi128_ps(_mm_or_si128(sign, special)));
}

static inline vf v_load_i8(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, 4);
    return _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four)));
}
