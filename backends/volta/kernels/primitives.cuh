// The instructions that the kernels are made of, under names, and nothing else.
//
// No CUDA header is included: 16-bit numbers travel as bit patterns and PTX converts them, so a
// machine needs NVRTC alone. tools/volta/emulator.h has the same functions for a C++ compiler.

#ifndef PORTATTN_EMULATED
#pragma nv_diag_suppress 177  // functions that this kernel does not use
#define DEVICE static __device__ __forceinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")

extern __shared__ __align__(128) unsigned char shared_memory[];

DEVICE unsigned shared_base() { return (unsigned)__cvta_generic_to_shared(shared_memory); }

DEVICE uint4 load_shared(unsigned at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
  return v;
}

DEVICE void store_shared(unsigned at, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};"
               :: "r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// 16 bytes of memory that nobody writes meanwhile, or 0.
DEVICE uint4 load_global(const unsigned short* at, bool inside) {
  uint4 v;
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.b32 p, %5, 0;\n mov.b32 %0, 0;\n mov.b32 %1, 0;\n"
      " mov.b32 %2, 0;\n mov.b32 %3, 0;\n @p ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(at), "r"((int)inside));
  return v;
}

DEVICE float load_shared_float(unsigned at) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(at));
  return v;
}

DEVICE void store_shared_float(unsigned at, float v) {
  asm volatile("st.shared.f32 [%0], %1;" :: "r"(at), "f"(v) : "memory");
}

// c[8x8 of each quad-pair] += a (row-major) b (column-major): see volta_tiles.cuh.
DEVICE void mma884_col(float (&c)[8], unsigned a0, unsigned a1, unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7},"
      "{%8,%9},{%10,%11},{%0,%1,%2,%3,%4,%5,%6,%7};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),
        "+f"(c[7])
      : "r"(a0), "r"(a1), "r"(b0), "r"(b1));
}

// The same with b row-major.
DEVICE void mma884_row(float (&c)[8], unsigned a0, unsigned a1, unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m8n8k4.row.row.f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7},"
      "{%8,%9},{%10,%11},{%0,%1,%2,%3,%4,%5,%6,%7};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),
        "+f"(c[7])
      : "r"(a0), "r"(a1), "r"(b0), "r"(b1));
}

#if TURING
// c[16x8] += a[16x8] b[8x8], four floats of c starting at c[4 * half].
template <int HALF>
DEVICE void mma1688(float (&c)[8], unsigned a0, unsigned a1, unsigned b0) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
      : "+f"(c[4 * HALF]), "+f"(c[4 * HALF + 1]), "+f"(c[4 * HALF + 2]), "+f"(c[4 * HALF + 3])
      : "r"(a0), "r"(a1), "r"(b0));
}

// Four 8x8 matrices; lanes 8i .. 8i+7 name the rows of the i-th.
DEVICE uint4 load_matrices(unsigned at) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
  return v;
}

DEVICE uint4 load_matrices_transposed(unsigned at) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
  return v;
}
#endif

DEVICE unsigned exchange(unsigned v, int lanes) { return __shfl_xor_sync(~0u, v, lanes); }
DEVICE float exchange(float v, int lanes) { return __shfl_xor_sync(~0u, v, lanes); }

DEVICE float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

DEVICE unsigned short half_of(float x) {
  unsigned short h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
  return h;
}

DEVICE float float_of_half(unsigned short h) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
  return x;
}

DEVICE unsigned pack(unsigned short low, unsigned short high) {
  unsigned v;
  asm("mov.b32 %0, {%1,%2};" : "=r"(v) : "h"(low), "h"(high));
  return v;
}

DEVICE unsigned bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of_bits(unsigned x) { return __uint_as_float(x); }
#endif

#define INFINITE float_of_bits(0x7f800000u)
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

DEVICE unsigned half2_of(float x, float y) { return pack(half_of(x), half_of(y)); }

DEVICE bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

DEVICE int smaller(int a, int b) { return a < b ? a : b; }
DEVICE int larger(int a, int b) { return a > b ? a : b; }

// Element types: 0 float16, 1 bfloat16, 2 float32.
DEVICE float element_to_float(unsigned short bits, int type) {
  return type == 1 ? float_of_bits((unsigned)bits << 16) : float_of_half(bits);
}

// bfloat16 has float16's significand and more, but a wider range: what is finite and doesn't fit
// becomes the largest finite float16, what is too small goes to subnormals or 0.
DEVICE unsigned short bfloat16_to_half(unsigned short bits) {
  const float x = float_of_bits((unsigned)bits << 16);
  const float bound = x > 65504.f ? 65504.f : x < -65504.f ? -65504.f : x;
  return half_of(is_finite(x) ? bound : x);
}

DEVICE unsigned short float_to_bfloat16(float x) {
  const unsigned u = bits_of(x);
  if (!is_finite(x)) return (unsigned short)((u >> 16) | ((u & 0xffffu) ? 0x40u : 0u));
  return (unsigned short)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

DEVICE unsigned halves_of_bfloat16(unsigned v) {
  return pack(bfloat16_to_half((unsigned short)v), bfloat16_to_half((unsigned short)(v >> 16)));
}

// Two float16 with NaN and infinities replaced by 0.
DEVICE unsigned finite_halves(unsigned v) {
  if ((v & 0x7c00u) == 0x7c00u) v &= 0xffff0000u;
  if ((v & 0x7c000000u) == 0x7c000000u) v &= 0xffffu;
  return v;
}

// tanh, exact to a rounding for small x too, where 1 - 2 / (e^2x + 1) would cancel.
DEVICE float tanh_of(float x) {
  const float size = x < 0.f ? -x : x;
  const float e = exp2_of(size * (-2.f * LOG2E));
  const float large = (1.f - e) / (1.f + e);
  const float y = x * x;
  const float series =
      1.f + y * (-1.f / 3.f + y * (2.f / 15.f + y * (-17.f / 315.f + y * (62.f / 2835.f))));
  return size < 0.3f ? x * series : x < 0.f ? -large : large;
}
