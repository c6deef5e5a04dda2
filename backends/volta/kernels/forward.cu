// Forward attention (FlashAttention-2, arXiv 2307.08691): four warps for a tile of query rows.
//
// Over tiles of keys, with scores x in base 2, running maximum m, sum l and unnormalised output o:
//
//   m' = max(m, max_j x_j)      p_j = 2^(x_j - m')      a = 2^(m - m')
//   l  = a l + sum_j p_j        o   = a o + sum_j p_j v_j
//
// and at the end out = o / l, lse = ln 2 m + ln l. A sink z enters as m = z log2(e), l = 1.
//
// q stays in shared memory; k and v take turns in one buffer beside it, each loaded into registers
// while the other is worked on: there is no asynchronous copy on these chips. A masked key has
// p = 0, but 0 NaN is NaN: a tile of rows that ends with a number that isn't finite is computed
// again without such entries of v, and those that a row sees are then added one by one.
//
// Constants: ROW_TILES tiles of 16 rows a warp, BLOCK_N keys a tile, BLOCKS a multiprocessor, those of
// problem.cuh.

#define WARPS 4
#define THREADS (32 * WARPS)
#define BLOCK_M (WARPS * 16 * ROW_TILES)
#define NT (BLOCK_N / 16)
#define DT (D / 16)
#define CHUNKS (D / 8)
// Rows are padded to a power of two bytes of at least 128, which the permutation of chunks needs.
#define ROW_CHUNKS (D <= 64 ? 8 : D <= 128 ? 16 : 32)
#define PITCH (16 * ROW_CHUNKS)
#define ROW_STEP (THREADS / ROW_CHUNKS)
#define LOADS (BLOCK_N / ROW_STEP)

struct State {
  float o[ROW_TILES][DT][8];
  float m[ROW_TILES][2], l[ROW_TILES][2];
};

DEVICE void start(State& state, float sink, bool has_sink) {
  UNROLL for (int t = 0; t < ROW_TILES; t++) {
    UNROLL for (int q = 0; q < 2; q++) {
      state.m[t][q] = has_sink ? sink * LOG2E : -INFINITE;
      state.l[t][q] = has_sink && first_of_row() ? 1.f : 0.f;
    }
    UNROLL for (int n = 0; n < DT; n++)
      UNROLL for (int e = 0; e < 8; e++) state.o[t][n][e] = 0.f;
  }
}

DEVICE void load_q(const Problem& p, const Sequence& s, int h, int first_row, unsigned at) {
  const unsigned short* data = p.q.data + s.b * (p.cu_seqlens_q ? 0 : p.q.batch) + h * p.q.head;
  const int chunk = threadIdx.x % ROW_CHUNKS;
  if (chunk >= CHUNKS) return;
  UNROLL for (int x = 0; x < BLOCK_M / ROW_STEP; x++) {
    const int row = threadIdx.x / ROW_CHUNKS + x * ROW_STEP;
    const uint4 v = load_chunk(data + (s.first_row + first_row + row) * p.q.row, p.q.dim, 8 * chunk,
                               p.head_dim, first_row + row < s.rows);
    store_shared(at + row * PITCH + ((chunk ^ swizzle_k(row)) << 4), v);
  }
}

// This thread's chunks of a tile of k or v, 0 past the last key.
DEVICE void fetch(uint4 (&into)[LOADS], const Problem& p, const Rows& rows, const Sequence& s,
                  const unsigned short* data, int first_key, int dims) {
  const int chunk = threadIdx.x % ROW_CHUNKS;
  const int mine = first_key + (int)(threadIdx.x / ROW_CHUNKS);
  const unsigned short* row = PAGED ? data : data + key_offset(p, rows, s, mine);
  UNROLL for (int x = 0; x < LOADS; x++) {
    const int key = mine + x * ROW_STEP;
    into[x] = load_chunk(PAGED ? data + key_offset(p, rows, s, key) : row, rows.dim, 8 * chunk,
                         dims, key < s.keys && (CHUNKS == ROW_CHUNKS || chunk < CHUNKS));
    row += ROW_STEP * rows.row;
  }
}

template <bool VALUES>
DEVICE void put(const uint4 (&from)[LOADS], unsigned at, bool only_finite) {
  const int chunk = threadIdx.x % ROW_CHUNKS;
  if (chunk >= CHUNKS) return;
  UNROLL for (int x = 0; x < LOADS; x++) {
    const int row = threadIdx.x / ROW_CHUNKS + x * ROW_STEP;
    const uint4 v = VALUES && only_finite ? finite_chunk(from[x]) : from[x];
    const int order = VALUES ? swizzle_v(row) : swizzle_k(row);
    store_shared(at + row * PITCH + ((chunk ^ order) << 4), v);
  }
}

// Products to scores in base 2, -inf at hidden keys.
DEVICE void score(float (&s)[ROW_TILES][NT][8], const Problem& p, const Sequence& at, int h, float slope,
                  int first_row, int first_key, bool masked) {
  if (FUSED && !masked) return;
  UNROLL for (int t = 0; t < ROW_TILES; t++)
    UNROLL for (int n = 0; n < NT; n++)
      UNROLL for (int e = 0; e < 8; e++) {
        const int row = first_row + tile_row(t, (e >> 1) & 1);
        const int key = first_key + tile_key(n, e >> 2) + (e & 1);
        const float x = score_of(p, at, h, row, key, slope, s[t][n][e]);
        const bool visible = masked ? is_visible(p, at, h, row, key) : true;
        s[t][n][e] = visible ? x : -INFINITE;
      }
}

// One tile of the online softmax over scores s * factor: weights, and the state rescaled.
DEVICE void softmax(unsigned (&p)[ROW_TILES][NT][4], const float (&s)[ROW_TILES][NT][8], State& state,
                    float factor) {
  UNROLL for (int t = 0; t < ROW_TILES; t++)
    UNROLL for (int q = 0; q < 2; q++) {
      float top = -INFINITE;
      UNROLL for (int n = 0; n < NT; n++)
        UNROLL for (int h = 0; h < 2; h++)
          top = fmaxf(top, fmaxf(s[t][n][4 * h + 2 * q], s[t][n][4 * h + 2 * q + 1]));
      top = fmaxf(top, exchange(top, ROW_LANES_A));
      top = fmaxf(top, exchange(top, ROW_LANES_B));
      const float m = fmaxf(state.m[t][q], top * factor);
      const float base = m == -INFINITE ? 0.f : m;
      const float shrink = exp2_of(state.m[t][q] - base);
      float sum = 0.f;
      UNROLL for (int n = 0; n < NT; n++)
        UNROLL for (int h = 0; h < 2; h++) {
          const float x = exp2_of(fmaf(s[t][n][4 * h + 2 * q], factor, -base));
          const float y = exp2_of(fmaf(s[t][n][4 * h + 2 * q + 1], factor, -base));
          sum += x + y;
          p[t][n][2 * q + h] = half2_of(x, y);
        }
      state.m[t][q] = m;
      state.l[t][q] = state.l[t][q] * shrink + sum;
      UNROLL for (int n = 0; n < DT; n++)
        UNROLL for (int h = 0; h < 2; h++) {
          state.o[t][n][4 * h + 2 * q] *= shrink;
          state.o[t][n][4 * h + 2 * q + 1] *= shrink;
        }
    }
}

// Adds the entries of v that aren't finite to the rows that see them, key by key.
DEVICE void add_visible_nonfinite(State& state, const Problem& p, const Sequence& s, int h,
                                  const unsigned short* v, int first_row, int lo, int hi) {
  NO_UNROLL for (int key = lo; key < hi; key++) {
    const unsigned short* entries = v + key_offset(p, p.v, s, key);
    bool sees[ROW_TILES][2];
    UNROLL for (int t = 0; t < ROW_TILES; t++)
      UNROLL for (int q = 0; q < 2; q++)
        sees[t][q] = is_visible(p, s, h, first_row + tile_row(t, q), key);
    UNROLL for (int n = 0; n < DT; n++)
      UNROLL for (int e = 0; e < 8; e++) {
        const int dim = tile_dim(n, e >> 2) + (e & 1);
        if (dim >= p.head_dim_v) continue;
        const float x = element_to_float(entries[dim * p.v.dim], ELEMENT);
        if (is_finite(x)) continue;
        UNROLL for (int t = 0; t < ROW_TILES; t++)
          if (sees[t][(e >> 1) & 1]) state.o[t][n][e] += x;
      }
  }
}

DEVICE bool any_nonfinite(const State& state) {
  bool found = false;
  UNROLL for (int t = 0; t < ROW_TILES; t++)
    UNROLL for (int n = 0; n < DT; n++)
      UNROLL for (int e = 0; e < 8; e++) found |= !is_finite(state.o[t][n][e]);
  return found;
}

DEVICE void finish(State& state, const Problem& p, const Sequence& s, int h, int first_row) {
  const long long batch = p.cu_seqlens_q ? 0 : s.b;
  UNROLL for (int t = 0; t < ROW_TILES; t++)
    UNROLL for (int q = 0; q < 2; q++) {
      float l = state.l[t][q];
      l += exchange(l, ROW_LANES_A);
      l += exchange(l, ROW_LANES_B);
      const int row = first_row + tile_row(t, q);
      if (row >= s.rows) continue;
      const float weight = l == 0.f ? 0.f : 1.f / l;
      unsigned short* out =
          p.out.data + batch * p.out.batch + (s.first_row + row) * p.out.row + h * p.out.head;
      UNROLL for (int n = 0; n < DT; n++)
        UNROLL for (int half = 0; half < 2; half++)
          store_pair(out, p.out.dim, tile_dim(n, half), p.head_dim_v,
                     state.o[t][n][4 * half + 2 * q] * weight,
                     state.o[t][n][4 * half + 2 * q + 1] * weight);
      if (first_of_row())
        p.lse[batch * p.lse_batch + h * p.lse_head + s.first_row + row] =
            l == 0.f ? -INFINITE : state.m[t][q] * LN2 + logf(l);
    }
}

KERNEL(THREADS, BLOCKS) forward(const Problem p) {
  // Causal: the last rows see the most keys and start first, of all heads; otherwise tiles of one
  // head are neighbours and find its keys in the cache.
  const int pairs = p.batch * p.heads, block = blockIdx.x;
  const int tile = p.heavy_first ? p.row_tiles - 1 - block / pairs : block % p.row_tiles;
  const int pair = p.heavy_first ? block % pairs : block / p.row_tiles;
  const int h = pair % p.heads;
  const Sequence s = sequence_of(p, pair / p.heads);
  const int tile_first = tile * BLOCK_M;
  if (tile_first >= s.rows) return;

  const int kv_head = h / p.group, first_row = tile_first + 16 * ROW_TILES * warp_id();
  const unsigned short* k = key_base(p.k, s, kv_head);
  const unsigned short* v = key_base(p.v, s, kv_head);
  const float slope = ALIBI ? p.slopes[s.b * p.slopes_batch + h] : 0.f;
  const float factor = FUSED ? p.scale * LOG2E : 1.f;
  const int last_row = smaller(tile_first + BLOCK_M, s.rows) - 1;
  int lo, hi, whole_lo, whole_hi;
  visible_keys(p, s, tile_first, last_row, lo, hi);
  whole_keys(p, s, tile_first, last_row, whole_lo, whole_hi);
  const int first = lo / BLOCK_N * BLOCK_N;
  const unsigned shared_q = shared_base(), shared_kv = shared_q + BLOCK_M * PITCH;
  const unsigned warp_q = shared_q + warp_id() * 16 * ROW_TILES * PITCH;
  load_q(p, s, h, tile_first, shared_q);

  State state;
  bool again = false;
  NO_UNROLL while (true) {
    start(state, SINKS ? p.sinks[h] : 0.f, SINKS);
    uint4 ahead[LOADS];
    if (first < hi) fetch(ahead, p, p.k, s, k, first, p.head_dim);
    NO_UNROLL for (int key = first; key < hi; key += BLOCK_N) {
      __syncthreads();
      put<false>(ahead, shared_kv, false);
      __syncthreads();
      float x[ROW_TILES][NT][8];
      UNROLL for (int t = 0; t < ROW_TILES; t++)
        UNROLL for (int n = 0; n < NT; n++)
          UNROLL for (int e = 0; e < 8; e++) x[t][n][e] = 0.f;
      multiply_qk<ROW_TILES, NT, CHUNKS, PITCH>(x, warp_q, shared_kv);
      const bool masked = MASK || BIAS || key < whole_lo || key + BLOCK_N > whole_hi;
      score(x, p, s, h, slope, first_row, key, masked);
      fetch(ahead, p, p.v, s, v, key, p.head_dim_v);
      unsigned weights[ROW_TILES][NT][4];
      softmax(weights, x, state, factor);
      __syncthreads();
      put<true>(ahead, shared_kv, again);
      __syncthreads();
      if (key + BLOCK_N < hi) fetch(ahead, p, p.k, s, k, key + BLOCK_N, p.head_dim);
      multiply_pv<ROW_TILES, NT, DT, PITCH>(state.o, weights, shared_kv);
    }
    if (again || !__syncthreads_or(any_nonfinite(state))) break;
    again = true;
  }
  if (again) add_visible_nonfinite(state, p, s, h, v, first_row, lo, hi);
  finish(state, p, s, h, first_row);
}
