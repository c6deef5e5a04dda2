// Warp tiles of sm_75: S = Q K^T and O += P V by mma.m16n8k8 and ldmatrix.
//
// With g = lane >> 2 and c = lane & 3 a lane holds of C[16x8] columns 2c, 2c+1 of rows g and g + 8,
// and of A[16x8] the same as two registers of float16: weights are operands as they are. B[8x8] is
// two numbers of column g, which ldmatrix reads from rows of k, and transposed from rows of v.
// Chunks of 16 bytes are permuted by chunk ^ (row & 7), so that the eight rows of a matrix lie in
// different banks.

DEVICE int lane_id() { return threadIdx.x & 31; }
DEVICE int warp_id() { return threadIdx.x >> 5; }

// What this thread's elements s[t][n][4 h + 2 q + x] and o[t][n][4 h + 2 q + x] stand for.
DEVICE int tile_row(int t, int q) { return 16 * t + 8 * q + (lane_id() >> 2); }
DEVICE int tile_key(int n, int h) { return 16 * n + 8 * h + 2 * (lane_id() & 3); }
DEVICE int tile_dim(int n, int h) { return 16 * n + 8 * h + 2 * (lane_id() & 3); }

// The lanes that hold the rest of a row.
#define ROW_LANES_A 1
#define ROW_LANES_B 2
DEVICE bool first_of_row() { return !(lane_id() & 3); }

DEVICE int swizzle_k(int row) { return row & 7; }
DEVICE int swizzle_v(int row) { return row & 7; }

// s = Q K^T over CHUNKS chunks of 8 dims; q and k name rows 0 of the warp's tile and of the keys.
template <int MT, int NT, int CHUNKS, int PITCH>
DEVICE void multiply_qk(float (&s)[MT][NT][8], unsigned q, unsigned k) {
  const int l = lane_id(), low = l & 7, first = (l >> 3) & 1, second = l >> 4;
  const unsigned q_at = q + (low + 8 * first) * PITCH, k_at = k + (low + 8 * second) * PITCH;
  UNROLL for (int pair = 0; pair < CHUNKS / 2; pair++) {
    uint4 a[MT];
    UNROLL for (int t = 0; t < MT; t++)
      a[t] = load_matrices(q_at + t * 16 * PITCH + (((2 * pair + second) ^ low) << 4));
    UNROLL for (int n = 0; n < NT; n++) {
      const uint4 b = load_matrices(k_at + n * 16 * PITCH + (((2 * pair + first) ^ low) << 4));
      UNROLL for (int t = 0; t < MT; t++) {
        mma1688<0>(s[t][n], a[t].x, a[t].y, b.x);
        mma1688<1>(s[t][n], a[t].x, a[t].y, b.z);
        mma1688<0>(s[t][n], a[t].z, a[t].w, b.y);
        mma1688<1>(s[t][n], a[t].z, a[t].w, b.w);
      }
    }
  }
}

// o += P V, p[t][n][2 q + h] holding two float16 each.
template <int MT, int NT, int DT, int PITCH>
DEVICE void multiply_pv(float (&o)[MT][DT][8], const unsigned (&p)[MT][NT][4], unsigned v) {
  const int l = lane_id(), low = l & 7, first = (l >> 3) & 1, second = l >> 4;
  const unsigned at = v + (low + 8 * first) * PITCH;
  UNROLL for (int n = 0; n < NT; n++) {
    UNROLL for (int j = 0; j < DT; j++) {
      const uint4 b =
          load_matrices_transposed(at + n * 16 * PITCH + (((2 * j + second) ^ low) << 4));
      UNROLL for (int t = 0; t < MT; t++) {
        mma1688<0>(o[t][j], p[t][n][0], p[t][n][2], b.x);
        mma1688<1>(o[t][j], p[t][n][0], p[t][n][2], b.z);
        mma1688<0>(o[t][j], p[t][n][1], p[t][n][3], b.y);
        mma1688<1>(o[t][j], p[t][n][1], p[t][n][3], b.w);
      }
    }
  }
}
