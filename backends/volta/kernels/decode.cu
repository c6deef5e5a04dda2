// Decoding: one new query a sequence, split over its keys. K and V go from memory to fragments.
//
// An mma.m8n8k4 takes the 8 query heads that share a kv head times 32 keys, 8 for each quad-pair:
// no lane's keys serve another, so nothing but q lies in shared memory. In a warp's 32
// keys a lane reads
//
//   k  key 8 pair + i + 4 hi, whole row                     (B, column-major)
//   v  keys 8 pair + 2 step + (i & 1) + 4 (i >> 1),
//      chunks 2 j + hi: lanes hi = 0, 1 share a sector      (B, row-major)
//
// and holds scores e of keys 8 pair + (e & 4) + (lane & 2) + (e & 1). Each quad-pair sums its own
// keys; those sums meet at the end: quad-pairs by exchange, warps in shared memory, splits in the
// second kernel, in a fixed order. Keys outside the window are never read: with a single query
// all rows see the same keys.

#define WARPS 4
#define THREADS (32 * WARPS)
#define CHUNKS (D / 8)
#define ROWS 8
#define PITCH (D <= 64 ? 128 : 256)

// One warp's rows: output, maximum and sum in base 2.
struct State {
  float o[D / 8][8];
  float m[2], l[2];
};

// The queries of the group, 0 for rows past its last head; all warps read the same.
DEVICE void load_q(const Problem& p, const Sequence& s, int first_head, int heads, unsigned at) {
  for (int x = threadIdx.x; x < ROWS * CHUNKS; x += THREADS) {
    const int row = x / CHUNKS, chunk = x % CHUNKS;
    const unsigned short* data = p.q.data + s.b * p.q.batch + (first_head + row) * p.q.head;
    store_shared(at + row * PITCH + ((chunk ^ row) << 4),
                 load_chunk(data, p.q.dim, 8 * chunk, p.head_dim, row < heads));
  }
}

// The weights of 32 keys from `base` on, and the state rescaled to them.
DEVICE void softmax(unsigned (&weights)[4], State& state, float (&x)[8], const Problem& p,
                    const Sequence& s, int first_head, const float (&slope)[2], int base,
                    int last) {
  const int l = lane_id();
  const float factor = FUSED ? p.scale * LOG2E : 1.f;
  UNROLL for (int e = 0; e < 8; e++) {
    const int key = base + 8 * ((l >> 2) & 3) + (e & 4) + (l & 2) + (e & 1);
    const float score = score_of(p, s, first_head, 0, key, slope[(e >> 1) & 1], x[e]);
    x[e] = key < last && in_window(p, s, 0, key) ? score : -INFINITE;
  }
  UNROLL for (int q = 0; q < 2; q++) {
    float top = fmaxf(fmaxf(x[2 * q], x[2 * q + 1]), fmaxf(x[2 * q + 4], x[2 * q + 5]));
    UNROLL for (int lanes = 2; lanes < 16; lanes *= 2) top = fmaxf(top, exchange(top, lanes));
    const float m = fmaxf(state.m[q], top * factor), zero = m == -INFINITE ? 0.f : m;
    const float shrink = exp2_of(state.m[q] - zero);
    float sum = 0.f;
    UNROLL for (int h = 0; h < 2; h++) {
      const float a = exp2_of(fmaf(x[4 * h + 2 * q], factor, -zero));
      const float b = exp2_of(fmaf(x[4 * h + 2 * q + 1], factor, -zero));
      sum += a + b;
      weights[2 * q + h] = half2_of(a, b);
    }
    state.m[q] = m;
    state.l[q] = state.l[q] * shrink + sum;
    UNROLL for (int n = 0; n < D / 8; n++)
      UNROLL for (int h = 0; h < 2; h++) {
        state.o[n][4 * h + 2 * q] *= shrink;
        state.o[n][4 * h + 2 * q + 1] *= shrink;
      }
  }
}

// Adds 32 keys from `base` on.
DEVICE void attend(State& state, unsigned q, const Problem& p, const Sequence& s,
                   const unsigned short* k, const unsigned short* v, int first_head,
                   const float (&slope)[2], int base, int last) {
  const int l = lane_id(), i = l & 3, hi = l >> 4, first = base + 8 * ((l >> 2) & 3);
  const int mine = i + 4 * hi, key = first + mine;
  const unsigned short* row = k + key_offset(p, p.k, s, key);
  const bool sees = key < last && in_window(p, s, 0, key);
  float x[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
  UNROLL for (int c = 0; c < CHUNKS; c++) {
    const uint4 b = load_chunk(row, p.k.dim, 8 * c, p.head_dim, sees);
    const uint4 a = load_shared(q + mine * PITCH + ((c ^ mine) << 4));
    mma884_col(x, a.x, a.y, b.x, b.y);
    mma884_col(x, a.z, a.w, b.z, b.w);
  }
  unsigned weights[4], a[4];
  softmax(weights, state, x, p, s, first_head, slope, base, last);
  own_keys(a, weights);
  UNROLL for (int step = 0; step < 2; step++) {
    const int value = first + 2 * step + (i & 1) + 4 * (i >> 1);
    const unsigned short* row = v + key_offset(p, p.v, s, value);
    const bool sees = value < last && in_window(p, s, 0, value);
    UNROLL for (int j = 0; j < D / 16; j++) {
      const uint4 b = load_chunk(row, p.v.dim, 16 * j + 8 * hi, p.head_dim_v, sees);
      mma884_row(state.o[2 * j], a[2 * step], a[2 * step + 1], b.x, b.y);
      mma884_row(state.o[2 * j + 1], a[2 * step], a[2 * step + 1], b.z, b.w);
    }
  }
}

// One row's share of a warp or split lies at `at`: D numbers, maximum, sum.
#define SHARE (D + 2)

DEVICE void put_share(State& state, unsigned warp_at) {
  const int l = lane_id();
  UNROLL for (int q = 0; q < 2; q++) {
    const unsigned at = warp_at + 4 * SHARE * ((l & 1) + 2 * q + 4 * (l >> 4));
    float sum = state.l[q];
    UNROLL for (int lanes = 2; lanes < 16; lanes *= 2) sum += exchange(sum, lanes);
    UNROLL for (int n = 0; n < D / 8; n++)
      UNROLL for (int x = 0; x < 4; x++) {
        float o = state.o[n][(x & 1) + 2 * q + 4 * (x >> 1)];
        o += exchange(o, 4);
        o += exchange(o, 8);
        const int dim = 16 * (n >> 1) + 8 * (x >> 1) + 4 * (n & 1) + (l & 2) + (x & 1);
        if (!(l & 12)) store_shared_float(at + 4 * dim, o);
      }
    if (!(l & 14)) {
      store_shared_float(at + 4 * D, state.m[q]);
      store_shared_float(at + 4 * D + 4, sum);
    }
  }
}

// A row's result from its unnormalised output, maximum and sum, its sink joined in.
DEVICE void finish(const Problem& p, int b, int h, int dim, float o, float m, float l) {
#if SINKS
  const float sink = p.sinks[h] * LOG2E, top = fmaxf(m, sink), shrink = exp2_of(m - top);
  o *= shrink;
  l = l * shrink + exp2_of(sink - top);
  m = top;
#endif
  if (dim < p.head_dim_v)
    p.out.data[b * p.out.batch + h * p.out.head + dim * p.out.dim] =
        element_of(l == 0.f ? 0.f : o / l);
  if (dim == 0) p.lse[b * p.lse_batch + h * p.lse_head] = l == 0.f ? -INFINITE : m * LN2 + logf(l);
}

KERNEL(THREADS, BLOCKS) decode(const Problem p) {
  const int row_groups = (p.group + ROWS - 1) / ROWS, kv_heads = p.heads / p.group;
  const int split = blockIdx.x % p.splits, unit = blockIdx.x / p.splits;
  const int kv_head = unit / row_groups % kv_heads;
  const Sequence s = sequence_of(p, unit / row_groups / kv_heads);
  const int in_group = unit % row_groups * ROWS, first_head = kv_head * p.group + in_group;
  const int heads = smaller(ROWS, p.group - in_group);
  int lo, hi;
  visible_keys(p, s, 0, 0, lo, hi);
  const int start = split * p.keys_per_split;
  const int from = larger(start, lo / 32 * 32), last = smaller(start + p.keys_per_split, hi);

  State state;
  UNROLL for (int e = 0; e < 2; e++) {
    state.m[e] = -INFINITE;
    state.l[e] = 0.f;
  }
  UNROLL for (int n = 0; n < D / 8; n++)
    UNROLL for (int e = 0; e < 8; e++) state.o[n][e] = 0.f;
  float slope[2] = {0.f, 0.f};
#if ALIBI
  UNROLL for (int e = 0; e < 2; e++) {
    const int row = (lane_id() & 1) + 2 * e + 4 * (lane_id() >> 4);
    slope[e] = row < heads ? p.slopes[s.b * p.slopes_batch + first_head + row] : 0.f;
  }
#endif
  const unsigned shares = shared_base(), warp_bytes = ROWS * SHARE * 4;
  const unsigned q = shares + WARPS * warp_bytes;
  load_q(p, s, first_head, heads, q);
  __syncthreads();
  const unsigned short *k = key_base(p.k, s, kv_head), *v = key_base(p.v, s, kv_head);
  NO_UNROLL for (int base = from + 32 * warp_id(); base < last; base += 32 * WARPS)
    attend(state, q, p, s, k, v, first_head, slope, base, last);

  put_share(state, shares + warp_id() * warp_bytes);
  __syncthreads();
  NO_UNROLL for (int x = threadIdx.x; x < heads * D; x += THREADS) {
    const unsigned at = shares + (x / D) * SHARE * 4;
    const int dim = x % D, h = first_head + x / D;
    float m = -INFINITE, l = 0.f, o = 0.f;
    UNROLL for (int w = 0; w < WARPS; w++)
      m = fmaxf(m, load_shared_float(at + w * warp_bytes + 4 * D));
    const float zero = m == -INFINITE ? 0.f : m;
    UNROLL for (int w = 0; w < WARPS; w++) {
      const float weight = exp2_of(load_shared_float(at + w * warp_bytes + 4 * D) - zero);
      l += weight * load_shared_float(at + w * warp_bytes + 4 * D + 4);
      o += weight * load_shared_float(at + w * warp_bytes + 4 * dim);
    }
    if (p.splits == 1) {
      finish(p, s.b, h, dim, o, m, l);
    } else {
      float* share = p.partial + ((s.b * (long long)p.heads + h) * p.splits + split) * SHARE;
      share[dim] = o;
      if (dim == 0) share[D] = m;
      if (dim == 0) share[D + 1] = l;
    }
  }
}

// Joins the splits of a row: one block for each sequence and head.
KERNEL(THREADS, BLOCKS) join(const Problem p) {
  const int b = blockIdx.x / p.heads, h = blockIdx.x % p.heads;
  const float* shares = p.partial + (long long)blockIdx.x * p.splits * SHARE;
  float m = -INFINITE;
  NO_UNROLL for (int split = 0; split < p.splits; split++)
    m = fmaxf(m, shares[split * SHARE + D]);
  const float zero = m == -INFINITE ? 0.f : m;
  NO_UNROLL for (int dim = threadIdx.x; dim < D; dim += THREADS) {
    float l = 0.f, o = 0.f;
    NO_UNROLL for (int split = 0; split < p.splits; split++) {
      const float weight = exp2_of(shares[split * SHARE + D] - zero);
      l += weight * shares[split * SHARE + D + 1];
      o += weight * shares[split * SHARE + dim];
    }
    finish(p, b, h, dim, o, m, l);
  }
}
