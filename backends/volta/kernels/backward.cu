// Backward attention, recomputed from lse: one kernel for dq, one for dk and dv, no atomics.
//
// With p_ij = 2^(x_ij - log2(e) lse_i), g = dL/dout and delta_i = g_i out_i - dL/dlse_i:
//
//   ds_ij = p_ij (g_i v_j - delta_i) scale
//   dq_i = sum_j ds_ij k_j      dk_j = sum_i ds_ij q_i      dv_j = sum_i p_ij g_i
//
// Both are made of the two products of the forward's tiles. dq keeps a tile of rows and goes over
// keys: x = q k^T and g v^T, then ds k. dk and dv keep a tile of keys and go over rows with
// everything transposed: k q^T and v g^T, then ds^T q and p^T g. What is an operand of both kinds
// of product lies in shared memory twice, each time in that product's order. The heads of a group
// are added up one after another, so that the sums always have one order.
//
// Constants: BLOCK_N rows or keys of a step, BLOCKS, those of problem.cuh.

#define WARPS 4
#define THREADS (32 * WARPS)
#define KEPT (WARPS * 16)
#define NT (BLOCK_N / 16)
#define DT (D / 16)
#define CHUNKS (D / 8)
#define PITCH (D <= 64 ? 128 : 256)

// Rows `first` to first + COUNT of a tensor, 0 past `count`, to `across` in the order of
// multiply_qk and to `down` in that of multiply_pv. clean: without NaN in the latter, which only
// p or ds = 0 could meet alone: where a row sees them, its scores are NaN already.
template <int COUNT, bool ACROSS, bool DOWN>
DEVICE void stage(unsigned across, unsigned down, const Rows& rows, const unsigned short* data,
                  int first, int count, int dims, bool clean) {
  UNROLL for (int x = 0; x < COUNT * CHUNKS / THREADS; x++) {
    const int at = threadIdx.x + x * THREADS, row = at / CHUNKS, chunk = at % CHUNKS;
    const uint4 v = load_chunk(data + (first + row) * rows.row, rows.dim, 8 * chunk, dims,
                               first + row < count);
    if (ACROSS) store_shared(across + row * PITCH + ((chunk ^ swizzle_k(row)) << 4), v);
    if (DOWN)
      store_shared(down + row * PITCH + ((chunk ^ swizzle_v(row)) << 4), clean ? finite_chunk(v) : v);
  }
}

// p and ds of one tile from its two products; the element's row and key are given by the caller.
DEVICE void weigh(float& x, float& g, const Problem& p, const Sequence& s, int h, int row, int key,
                  float slope, const float* lse, const float* delta) {
  const bool visible = is_visible(p, s, h, row, key);
  const float factor = FUSED ? p.scale * LOG2E : 1.f;
  const float score = score_of(p, s, h, row, key, slope, x) * factor;
  const float weight = visible ? exp2_of(score - lse[row] * LOG2E) : 0.f;
  g = visible ? weight * (g - delta[row]) * p.scale : 0.f;
  x = weight;
}

DEVICE void clear(float (&sums)[1][DT][8]) {
  UNROLL for (int n = 0; n < DT; n++)
    UNROLL for (int e = 0; e < 8; e++) sums[0][n][e] = 0.f;
}

DEVICE void pack_tile(unsigned (&into)[1][NT][4], const float (&from)[1][NT][8]) {
  UNROLL for (int n = 0; n < NT; n++)
    UNROLL for (int q = 0; q < 2; q++)
      UNROLL for (int h = 0; h < 2; h++)
        into[0][n][2 * q + h] = half2_of(from[0][n][4 * h + 2 * q], from[0][n][4 * h + 2 * q + 1]);
}

// a b^T and c d^T of one tile.
DEVICE void products(float (&x)[1][NT][8], float (&g)[1][NT][8], unsigned a, unsigned b, unsigned c,
                     unsigned d) {
  UNROLL for (int n = 0; n < NT; n++)
    UNROLL for (int e = 0; e < 8; e++) x[0][n][e] = g[0][n][e] = 0.f;
  multiply_qk<1, NT, CHUNKS, PITCH>(x, a, b);
  multiply_qk<1, NT, CHUNKS, PITCH>(g, c, d);
}

// Rows `first` on of a gradient.
DEVICE void put(const Rows& rows, unsigned short* data, const float (&sums)[1][DT][8], int first,
                int count, int dims) {
  UNROLL for (int q = 0; q < 2; q++) {
    const int row = first + tile_row(0, q);
    if (row >= count) continue;
    UNROLL for (int n = 0; n < DT; n++)
      UNROLL for (int h = 0; h < 2; h++)
        store_pair(data + row * rows.row, rows.dim, tile_dim(n, h), dims, sums[0][n][4 * h + 2 * q],
                   sums[0][n][4 * h + 2 * q + 1]);
  }
}

DEVICE const float* row_values(const float* values, const Problem& p, const Sequence& s, int h) {
  return values + (p.cu_seqlens_q ? 0 : s.b) * p.lse_batch + h * p.lse_head + s.first_row;
}

DEVICE unsigned short* query_rows(const Problem& p, const Rows& rows, const Sequence& s, int h) {
  return rows.data + (p.cu_seqlens_q ? 0 : s.b) * rows.batch + s.first_row * rows.row +
         h * rows.head;
}

DEVICE unsigned short* key_rows(const Rows& rows, const Sequence& s, int kv_head) {
  return const_cast<unsigned short*>(key_base(rows, s, kv_head));
}

KERNEL(THREADS, BLOCKS) gradient_q(const Problem p) {
  const int pairs = p.batch * p.heads, block = blockIdx.x;
  const int tile = p.row_tiles - 1 - block / pairs, h = block % pairs % p.heads;
  const Sequence s = sequence_of(p, block % pairs / p.heads);
  const int tile_first = tile * KEPT, first_row = tile_first + 16 * warp_id();
  if (tile_first >= s.rows) return;
  const int kv_head = h / p.group;
  const float slope = ALIBI ? p.slopes[s.b * p.slopes_batch + h] : 0.f;
  const float *lse = row_values(p.lse, p, s, h), *delta = row_values(p.delta, p, s, h);
  int lo, hi;
  visible_keys(p, s, tile_first, smaller(tile_first + KEPT, s.rows) - 1, lo, hi);

  const unsigned q = shared_base(), g = q + KEPT * PITCH, k = g + KEPT * PITCH;
  const unsigned v = k + BLOCK_N * PITCH, k_down = v + BLOCK_N * PITCH;
  const unsigned warp = 16 * warp_id() * PITCH;
  stage<KEPT, true, false>(q, 0, p.q, query_rows(p, p.q, s, h), tile_first, s.rows, p.head_dim,
                           false);
  stage<KEPT, true, false>(g, 0, p.grad_out, query_rows(p, p.grad_out, s, h), tile_first, s.rows,
                           p.head_dim_v, false);
  float dq[1][DT][8];
  clear(dq);
  NO_UNROLL for (int key = lo / BLOCK_N * BLOCK_N; key < hi; key += BLOCK_N) {
    __syncthreads();
    stage<BLOCK_N, true, true>(k, k_down, p.k, key_rows(p.k, s, kv_head), key, s.keys, p.head_dim,
                               true);
    stage<BLOCK_N, true, false>(v, 0, p.v, key_rows(p.v, s, kv_head), key, s.keys, p.head_dim_v,
                                false);
    __syncthreads();
    float x[1][NT][8], ds[1][NT][8];
    products(x, ds, q + warp, k, g + warp, v);
    UNROLL for (int n = 0; n < NT; n++)
      UNROLL for (int e = 0; e < 8; e++)
        weigh(x[0][n][e], ds[0][n][e], p, s, h, first_row + tile_row(0, (e >> 1) & 1),
              key + tile_key(n, e >> 2) + (e & 1), slope, lse, delta);
    unsigned packed[1][NT][4];
    pack_tile(packed, ds);
    multiply_pv<1, NT, DT, PITCH>(dq, packed, k_down);
  }
  put(p.dq, query_rows(p, p.dq, s, h), dq, first_row, s.rows, p.head_dim);
}

KERNEL(THREADS, BLOCKS) gradient_kv(const Problem p) {
  const int kv_heads = p.heads / p.group, pairs = p.batch * kv_heads, block = blockIdx.x;
  const int tile_first = block / pairs * KEPT, kv_head = block % pairs % kv_heads;
  const Sequence s = sequence_of(p, block % pairs / kv_heads);
  if (tile_first >= s.keys) return;
  const int first_key = tile_first + 16 * warp_id(), offset = s.keys - s.rows;
  const int lo = p.right >= 0 ? larger(tile_first - offset - p.right, 0) : 0;
  const int last_key = smaller(tile_first + KEPT, s.keys) - 1;
  const int hi = p.left >= 0 ? smaller(last_key - offset + p.left + 1, s.rows) : s.rows;

  const unsigned k = shared_base(), v = k + KEPT * PITCH, q = v + KEPT * PITCH;
  const unsigned g = q + BLOCK_N * PITCH, q_down = g + BLOCK_N * PITCH;
  const unsigned g_down = q_down + BLOCK_N * PITCH, warp = 16 * warp_id() * PITCH;
  stage<KEPT, true, false>(k, 0, p.k, key_rows(p.k, s, kv_head), tile_first, s.keys, p.head_dim,
                           false);
  stage<KEPT, true, false>(v, 0, p.v, key_rows(p.v, s, kv_head), tile_first, s.keys, p.head_dim_v,
                           false);
  float dk[1][DT][8], dv[1][DT][8];
  clear(dk);
  clear(dv);
  NO_UNROLL for (int h = kv_head * p.group; h < (kv_head + 1) * p.group; h++) {
    const float slope = ALIBI ? p.slopes[s.b * p.slopes_batch + h] : 0.f;
    const float *lse = row_values(p.lse, p, s, h), *delta = row_values(p.delta, p, s, h);
    NO_UNROLL for (int row = lo / BLOCK_N * BLOCK_N; row < hi; row += BLOCK_N) {
      __syncthreads();
      stage<BLOCK_N, true, true>(q, q_down, p.q, query_rows(p, p.q, s, h), row, s.rows, p.head_dim,
                                 true);
      stage<BLOCK_N, true, true>(g, g_down, p.grad_out, query_rows(p, p.grad_out, s, h), row,
                                 s.rows, p.head_dim_v, false);
      __syncthreads();
      float x[1][NT][8], ds[1][NT][8];
      products(x, ds, k + warp, q, v + warp, g);
      UNROLL for (int n = 0; n < NT; n++)
        UNROLL for (int e = 0; e < 8; e++)
          weigh(x[0][n][e], ds[0][n][e], p, s, h, row + tile_key(n, e >> 2) + (e & 1),
                first_key + tile_row(0, (e >> 1) & 1), slope, lse, delta);
      unsigned packed[1][NT][4];
      pack_tile(packed, x);
      multiply_pv<1, NT, DT, PITCH>(dv, packed, g_down);
      pack_tile(packed, ds);
      multiply_pv<1, NT, DT, PITCH>(dk, packed, q_down);
    }
  }
  put(p.dk, key_rows(p.dk, s, kv_head), dk, first_key, s.keys, p.head_dim);
  put(p.dv, key_rows(p.dv, s, kv_head), dv, first_key, s.keys, p.head_dim_v);
}
