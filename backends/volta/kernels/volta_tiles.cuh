// Warp tiles of sm_70: S = Q K^T and O += P V by mma.m8n8k4, with P never in shared memory.
//
// One mma.m8n8k4 is four products 8x8x4, one for each quad-pair: the lanes that share bits 2 and 3.
// With i = lane & 3 and hi = lane >> 4, a lane of a quad-pair holds
//
//   A, row-major   row i + 4 hi, four columns           B, column-major   column i + 4 hi, four rows
//   C, float32     element e: row (lane & 1) + (e & 2) + 4 hi,
//                             column (e & 4) + (lane & 2) + (e & 1)
//                                                       B, row-major   row i, columns 4 hi .. + 3
//
// A quarter of a warp reads 128 bytes of shared memory in a cycle, and quad-pairs that read the
// same bytes cost as much as if they didn't. A warp tile of M x N over a qm x qn grid of quad-pairs
// so reads, of shared memory per lane and mma,
//
//   256 (1 / (qm N) + 1 / (qn M)) bytes, and 8 is all that it can have.
//
// 16 rows a warp, or a 4 x 1 grid, need 8. Here a warp has 32 rows on a 2 x 2 grid:
//
//             c = 0            c = 1                   lane = 16 hi + 8 r + 4 c + i
//   r = 0   rows  0..7 of a  rows  0..7 of a           r: which 8 of 16 rows
//           16-row tile,     16-row tile,              c: which keys (Q K^T), or columns (P V)
//           its keys c = 0   its keys c = 1
//   r = 1   rows  8..15      rows  8..15
//
// Q K^T then reads 2 + 4 bytes and P V 4. For P V each quad-pair needs all 16 keys of a group but
// has half of them: a lane swaps the row it doesn't own in A with lane ^ 2, then takes the other
// keys from lane ^ 4: 6 shuffles for a 16 x 16 tile, where a detour through shared memory would
// write and read it.
//
// Chunks of 16 bytes are permuted within a row of shared memory (q and k: chunk ^ (row & 7); v: see
// swizzle_v), and lanes own keys in an order, such that each quarter-warp touches eight different
// groups of four banks: all accesses take the least number of wavefronts.

DEVICE int lane_id() { return threadIdx.x & 31; }
DEVICE int warp_id() { return threadIdx.x >> 5; }

// What this thread's elements s[t][n][4 h + 2 q + x] and o[t][n][4 h + 2 q + x] stand for.
DEVICE int tile_row(int t, int q) {
  const int l = lane_id();
  return 16 * t + 8 * ((l >> 3) & 1) + 4 * (l >> 4) + (l & 1) + 2 * q;
}
DEVICE int tile_key(int n, int h) {
  const int l = lane_id();
  return 16 * n + 8 * h + 4 * ((l >> 2) & 1) + (l & 2);
}
DEVICE int tile_dim(int n, int h) {
  const int l = lane_id();
  return 32 * (n >> 1) + 16 * h + 8 * ((l >> 2) & 1) + 4 * (n & 1) + (l & 2);
}

// The lanes that hold the rest of a row.
#define ROW_LANES_A 2
#define ROW_LANES_B 4
DEVICE bool first_of_row() { return !(lane_id() & 6); }

DEVICE int swizzle_k(int row) { return row & 7; }
DEVICE int swizzle_v(int row) { return ((row & 1) << 1) | (((row >> 3) & 1) << 2); }

// s = Q K^T over CHUNKS chunks of 8 dims; q and k name rows 0 of the warp's tile and of the keys.
template <int MT, int NT, int CHUNKS, int PITCH>
DEVICE void multiply_qk(float (&s)[MT][NT][8], unsigned q, unsigned k) {
  const int l = lane_id(), i = l & 3, hi = l >> 4;
  const int row = 8 * ((l >> 3) & 1) + 4 * hi + i;
  const int key = i + 4 * ((l >> 2) & 1) + 8 * hi;
  const unsigned q_at = q + row * PITCH + ((row & 7) << 4);
  const unsigned k_at = k + key * PITCH + ((key & 7) << 4);
  UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) {
    const unsigned low = (chunk & 7) << 4, high = (chunk & ~7) << 4;
    uint4 a[MT];
    UNROLL for (int t = 0; t < MT; t++) a[t] = load_shared((q_at ^ low) + high + t * 16 * PITCH);
    UNROLL for (int n = 0; n < NT; n++) {
      const uint4 b = load_shared((k_at ^ low) + high + n * 16 * PITCH);
      UNROLL for (int t = 0; t < MT; t++) mma884_col(s[t][n], a[t].x, a[t].y, b.x, b.y);
      UNROLL for (int t = 0; t < MT; t++) mma884_col(s[t][n], a[t].z, a[t].w, b.z, b.w);
    }
  }
}

// a[4]: p[2 q + h] of an 8 x 8 tile of each quad-pair as the A operands of two k-steps, two
// registers each: keys 0, 1, 4, 5, then 2, 3, 6, 7 of what it holds.
DEVICE void own_keys(unsigned* a, const unsigned (&p)[4]) {
  const bool second = lane_id() & 2;
  const unsigned mine0 = second ? p[2] : p[0], mine1 = second ? p[3] : p[1];
  const unsigned got0 = exchange(second ? p[0] : p[2], 2), got1 = exchange(second ? p[1] : p[3], 2);
  a[0] = second ? got0 : mine0;
  a[1] = second ? got1 : mine1;
  a[2] = second ? mine0 : got0;
  a[3] = second ? mine1 : got1;
}

// a[8]: the same, then the keys of lane ^ 4.
DEVICE void all_keys(unsigned (&a)[8], const unsigned (&p)[4]) {
  own_keys(a, p);
  UNROLL for (int e = 0; e < 4; e++) a[4 + e] = exchange(a[e], 4);
}

// o += P V, p[t][n][2 q + h] holding two float16 each.
template <int MT, int NT, int DT, int PITCH>
DEVICE void multiply_pv(float (&o)[MT][DT][8], const unsigned (&p)[MT][NT][4], unsigned v) {
  const int l = lane_id(), i = l & 3, hi = l >> 4, c = (l >> 2) & 1;
  const unsigned order = ((2 * hi + c) ^ (2 * i)) << 4;
  const int key = (i & 1) + 8 * (i >> 1);
  const unsigned own = v + (key + 4 * c) * PITCH, other = v + (key + 4 * (c ^ 1)) * PITCH;
  UNROLL for (int n = 0; n < NT; n++) {
    unsigned a[MT][8];
    UNROLL for (int t = 0; t < MT; t++) all_keys(a[t], p[t][n]);
    UNROLL for (int step = 0; step < 4; step++) {
      const unsigned at = (step < 2 ? own : other) + (16 * n + 2 * (step & 1)) * PITCH;
      UNROLL for (int j = 0; j < DT / 2; j++) {
        const uint4 b = load_shared(at + (order ^ ((j & 1) << 6)) + ((j >> 1) << 7));
        UNROLL for (int t = 0; t < MT; t++)
          mma884_row(o[t][2 * j], a[t][2 * step], a[t][2 * step + 1], b.x, b.y);
        UNROLL for (int t = 0; t < MT; t++)
          mma884_row(o[t][2 * j + 1], a[t][2 * step], a[t][2 * step + 1], b.z, b.w);
      }
    }
  }
}
