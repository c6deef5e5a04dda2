/* NEON of AArch64: 4 lanes, 32 registers. */
#include <arm_neon.h>

#define VW 4
#define VEC_REGISTERS 32

typedef float32x4_t vf;

static inline vf v_load(const float *p) { return vld1q_f32(p); }
static inline void v_store(float *p, vf a) { vst1q_f32(p, a); }
static inline vf v_set1(float a) { return vdupq_n_f32(a); }
static inline vf v_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf v_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf v_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf v_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf v_div(vf a, vf b) { return vdivq_f32(a, b); }
/* As on x86: b where either is NaN. */
static inline vf v_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static inline vf v_abs(vf a) { return vabsq_f32(a); }
static inline vf v_round(vf a) { return vrndnq_f32(a); }

/* a < b ? x : y */
static inline vf v_select_lt(vf a, vf b, vf x, vf y) { return vbslq_f32(vcltq_f32(a, b), x, y); }

/* a 2^n for whole n from -126 to 127. */
static inline vf v_scale2(vf a, vf n) {
    int32x4_t exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}

typedef uint32x4_t vu;

static inline vu u_load(const uint32_t *p) { return vld1q_u32(p); }
static inline vu u_set1(uint32_t a) { return vdupq_n_u32(a); }
static inline vu u_multiply(vu a, vu b) {
    const uint32x2_t x = vmovn_u64(vreinterpretq_u64_u32(a)), y = vmovn_u64(vreinterpretq_u64_u32(b));
    return vreinterpretq_u32_u64(vmull_u32(x, y));
}
static inline vu u_high(vu a) {
    return vreinterpretq_u32_u64(vshrq_n_u64(vreinterpretq_u64_u32(a), 32));
}
static inline vu u_xor(vu a, vu b) { return veorq_u32(a, b); }
static inline vu u_join(vu even, vu odd) {
    return vreinterpretq_u32_u64(
        vsliq_n_u64(vreinterpretq_u64_u32(even), vreinterpretq_u64_u32(odd), 32));
}
static inline vf v_top24(vu a) { return vcvtq_f32_u32(vshrq_n_u32(a, 8)); }

/* The sums of four vectors' lanes. */
static inline void v_sum4(vf a, vf b, vf c, vf d, float *to) {
    vst1q_f32(to, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}

static inline void v_load2_bf16(const uint16_t *p, vf *even, vf *odd) {
    uint32x4_t x = vreinterpretq_u32_u16(vld1q_u16(p));
    *even = vreinterpretq_f32_u32(vshlq_n_u32(x, 16));
    *odd = vreinterpretq_f32_u32(vandq_u32(x, vdupq_n_u32(0xFFFF0000)));
}

static inline vf v_load_f16(const uint16_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

static inline vf v_load_i8(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, 4);
    int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
}
