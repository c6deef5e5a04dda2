/* Keys and values of every dtype as pairs of float32 vectors, one layer per instruction set.
 *
 * A pair holds PAIR = 2 VW neighbouring elements in vectors a and b: the first VW in a and the next in
 * b, except for bfloat16, where a has the even ones and b the odd ones, which takes a shift and a mask
 * where widening in order takes shuffles. pair_place says where an element lies; what meets a pair
 * (queries, sums of values) is kept in that order.
 *
 *     load_pair(kind, from, &a, &b)          PAIR elements
 *     load_part(kind, from, count, &a, &b)   count < PAIR of them, 0 beyond; reads nothing further
 *     v_sums(x)                              lane i: the sum of all lanes of x[i], for VW vectors
 *
 * `kind` is a compile-time constant wherever these are called.
 */

#define PAIR (2 * VW)
#define INLINE static inline __attribute__((always_inline))

enum { PA_INT8 = 3 };

INLINE int kind_bytes(const int kind) { return kind == PA_F32 ? 4 : kind == PA_INT8 ? 1 : 2; }

/* Where element i of a pair stands among a's and b's lanes. */
INLINE int pair_place(const int kind, int i) {
    return kind == PA_BF16 ? (i & 1) * VW + i / 2 : i;
}

#if defined(__AVX512F__)

INLINE void split_bf16(__m512i x, vf *a, vf *b) {
    *a = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    *b = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xFFFF0000)));
}

INLINE void load_pair(const int kind, const void *from, vf *a, vf *b) {
    if (kind == PA_F32) {
        *a = _mm512_loadu_ps(from);
        *b = _mm512_loadu_ps((const float *)from + 16);
    } else if (kind == PA_BF16) {
        split_bf16(_mm512_loadu_si512(from), a, b);
    } else if (kind == PA_F16) {
        *a = _mm512_cvtph_ps(_mm256_loadu_si256(from));
        *b = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from + 1));
    } else {
        *a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from)));
        *b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from + 1)));
    }
}

INLINE void load_part(const int kind, const void *from, int count, vf *a, vf *b) {
    const __mmask32 mask = (__mmask32)((1ull << count) - 1);
    if (kind == PA_F32) {
        *a = _mm512_maskz_loadu_ps((__mmask16)mask, from);
        *b = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), (const float *)from + 16);
    } else if (kind == PA_BF16) {
        split_bf16(_mm512_maskz_loadu_epi16(mask, from), a, b);
    } else if (kind == PA_F16) {
        const __m512i x = _mm512_maskz_loadu_epi16(mask, from);
        *a = _mm512_cvtph_ps(_mm512_castsi512_si256(x));
        *b = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1));
    } else {
        const __m256i x = _mm256_maskz_loadu_epi8(mask, from);
        *a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(x)));
        *b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(x, 1)));
    }
}

INLINE vf v_sums(const vf *x) {
    __m512 two[8], four[4];
    UNROLL for (int i = 0; i < 8; i++)
        two[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]),
                               _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
    UNROLL for (int i = 0; i < 4; i++) {
        const __m512d low = _mm512_castps_pd(two[2 * i]), high = _mm512_castps_pd(two[2 * i + 1]);
        four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                                _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
    }
    const __m512 left = _mm512_add_ps(_mm512_shuffle_f32x4(four[0], four[1], 0x88),
                                      _mm512_shuffle_f32x4(four[0], four[1], 0xDD));
    const __m512 right = _mm512_add_ps(_mm512_shuffle_f32x4(four[2], four[3], 0x88),
                                       _mm512_shuffle_f32x4(four[2], four[3], 0xDD));
    return _mm512_add_ps(_mm512_shuffle_f32x4(left, right, 0x88),
                         _mm512_shuffle_f32x4(left, right, 0xDD));
}

#else

INLINE void load_pair(const int kind, const void *from, vf *a, vf *b);

INLINE void load_part(const int kind, const void *from, int count, vf *a, vf *b) {
    char whole[PAIR * sizeof(float)] = {0};
    memcpy(whole, from, (size_t)(count * kind_bytes(kind)));
    load_pair(kind, whole, a, b);
}

#if defined(__AVX2__)

INLINE void load_pair(const int kind, const void *from, vf *a, vf *b) {
    if (kind == PA_F32) {
        *a = _mm256_loadu_ps(from);
        *b = _mm256_loadu_ps((const float *)from + 8);
    } else if (kind == PA_BF16) {
        const __m256i x = _mm256_loadu_si256(from);
        *a = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
        *b = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xFFFF0000)));
    } else if (kind == PA_F16) {
        *a = _mm256_cvtph_ps(_mm_loadu_si128(from));
        *b = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from + 1));
    } else {
        const __m128i x = _mm_loadu_si128(from);
        *a = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x));
        *b = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)));
    }
}

INLINE vf v_sums(const vf *x) {
    const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                         _mm256_permute2f128_ps(low, high, 0x31));
}

#elif defined(__SSE4_2__)

/* Four float16 in the low halves of x's lanes. Exponents are rebased by a multiplication, which also
 * normalises subnormals; those of inf and NaN are set. */
INLINE vf widen_f16(__m128i x) {
    const __m128i sign = _mm_slli_epi32(_mm_and_si128(x, _mm_set1_epi32(0x8000)), 16);
    const __m128i size = _mm_slli_epi32(_mm_and_si128(x, _mm_set1_epi32(0x7FFF)), 13);
    const __m128i special = _mm_and_si128(_mm_cmpgt_epi32(size, _mm_set1_epi32(0x0F7FFFFF)),
                                          _mm_set1_epi32(0x7F800000));
    const __m128 value = _mm_mul_ps(_mm_castsi128_ps(size), _mm_set1_ps(0x1p112f));
    return _mm_or_ps(value, _mm_castsi128_ps(_mm_or_si128(sign, special)));
}

INLINE void load_pair(const int kind, const void *from, vf *a, vf *b) {
    if (kind == PA_F32) {
        *a = _mm_loadu_ps(from);
        *b = _mm_loadu_ps((const float *)from + 4);
    } else if (kind == PA_BF16) {
        const __m128i x = _mm_loadu_si128(from);
        *a = _mm_castsi128_ps(_mm_slli_epi32(x, 16));
        *b = _mm_castsi128_ps(_mm_and_si128(x, _mm_set1_epi32((int)0xFFFF0000)));
    } else if (kind == PA_F16) {
        const __m128i x = _mm_loadu_si128(from);
        *a = widen_f16(_mm_cvtepu16_epi32(x));
        *b = widen_f16(_mm_cvtepu16_epi32(_mm_srli_si128(x, 8)));
    } else {
        const __m128i x = _mm_loadl_epi64(from);
        *a = _mm_cvtepi32_ps(_mm_cvtepi8_epi32(x));
        *b = _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_srli_si128(x, 4)));
    }
}

INLINE vf v_sums(const vf *x) {
    return _mm_hadd_ps(_mm_hadd_ps(x[0], x[1]), _mm_hadd_ps(x[2], x[3]));
}

#elif defined(__ARM_NEON)

INLINE void load_pair(const int kind, const void *from, vf *a, vf *b) {
    if (kind == PA_F32) {
        *a = vld1q_f32(from);
        *b = vld1q_f32((const float *)from + 4);
    } else if (kind == PA_BF16) {
        const uint32x4_t x = vreinterpretq_u32_u16(vld1q_u16(from));
        *a = vreinterpretq_f32_u32(vshlq_n_u32(x, 16));
        *b = vreinterpretq_f32_u32(vandq_u32(x, vdupq_n_u32(0xFFFF0000)));
    } else if (kind == PA_F16) {
        const float16x8_t x = vreinterpretq_f16_u16(vld1q_u16(from));
        *a = vcvt_f32_f16(vget_low_f16(x));
        *b = vcvt_high_f32_f16(x);
    } else {
        const int16x8_t x = vmovl_s8(vld1_s8(from));
        *a = vcvtq_f32_s32(vmovl_s16(vget_low_s16(x)));
        *b = vcvtq_f32_s32(vmovl_high_s16(x));
    }
}

INLINE vf v_sums(const vf *x) {
    return vpaddq_f32(vpaddq_f32(x[0], x[1]), vpaddq_f32(x[2], x[3]));
}

#endif
#endif

/* Products of bfloat16 pairs in one instruction, where there is one: both operands in memory order. */
#if defined(__AVX512BF16__)
#define HAS_BF16_DOT 1
INLINE vf v_dot_pair(vf sum, const void *q, const void *k) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(q), (__m512bh)_mm512_loadu_si512(k));
}
INLINE vf v_dot_part(vf sum, const void *q, const void *k, int count) {
    const __mmask32 mask = (__mmask32)((1ull << count) - 1);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(q),
                            (__m512bh)_mm512_maskz_loadu_epi16(mask, k));
}
#else
#define HAS_BF16_DOT 0
#endif

/* Lanes of one vector: reduced in a fixed order. */
INLINE float v_sum(vf x) {
    float lane[VW];
    v_store(lane, x);
    UNROLL for (int half = VW / 2; half; half /= 2)
        UNROLL for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

INLINE float v_largest(vf x) {
    float lane[VW];
    v_store(lane, x);
    UNROLL for (int half = VW / 2; half; half /= 2)
        UNROLL for (int i = 0; i < half; i++)
            lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
    return lane[0];
}

INLINE void prefetch(const char *from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 3);
}
