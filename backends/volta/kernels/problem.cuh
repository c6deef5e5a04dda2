// A problem as the kernels see it, and the memory it lies in. launch.py mirrors these structures.
//
// Constants of a compilation: D (head dim of the tiles: both head dims, padded), ELEMENT (type of
// q, k, v, out: 0 float16, 1 bfloat16), ALIGNED (rows are whole chunks of 16 bytes at multiples
// of 16), PAGED, and of the scores FUSED, SOFTCAP, ALIBI, BIAS (0, or 1 + its type), MASK, SINKS.

struct Rows {  // q, k, v, out: strides in elements; packed tensors have batch 0
  unsigned short* data;
  long long batch, row, head, dim;
};

struct Matrix {  // bias or mask over scores: stride 0 where it is broadcast
  const void* data;
  long long batch, head, row, key;
};

struct Problem {
  Rows q, k, v, out;
  Matrix bias, mask;
  float* lse;
  long long lse_batch, lse_head;
  const float* slopes;
  long long slopes_batch;
  const float* sinks;
  const int *cu_seqlens_q, *cu_seqlens_k, *seqused_k, *leftpad_k, *cache_batch_idx, *block_table;
  long long table_stride;
  int page_size, batch, heads, group, seqlen_q, seqlen_k, head_dim, head_dim_v;
  int left, right;  // a window's sides, -1 is unbounded
  int row_tiles, heavy_first, splits, keys_per_split;
  float scale, softcap;
  Rows grad_out, dq, dk, dv;
  const float* delta;  // as lse
  float* partial;  // decode: [batch, head, split, D + 2], the output, its maximum and its sum
};

// Where one sequence's rows and keys lie.
struct Sequence {
  int b, first_row, rows, key_batch, first_key, keys;
};

DEVICE Sequence sequence_of(const Problem& p, int b) {
  Sequence s = {b, 0, p.seqlen_q, b, 0, p.seqlen_k};
  if (p.cu_seqlens_q) {
    s.first_row = p.cu_seqlens_q[b];
    s.rows = p.cu_seqlens_q[b + 1] - s.first_row;
  }
  if (p.seqused_k) {
    s.first_key = p.leftpad_k ? p.leftpad_k[b] : 0;
    s.key_batch = p.cache_batch_idx ? p.cache_batch_idx[b] : b;
    s.keys = p.seqused_k[b] - s.first_key;
  } else if (p.cu_seqlens_k) {
    const int start = p.cu_seqlens_k[b];
    s.keys = p.cu_seqlens_k[b + 1] - start;
    s.first_key = PAGED ? 0 : start;
  }
  return s;
}

// Where a kv head's first key lies; of pages, the first page.
DEVICE const unsigned short* key_base(const Rows& rows, const Sequence& s, int kv_head) {
  const unsigned short* head = rows.data + kv_head * rows.head;
  return PAGED ? head : head + s.key_batch * rows.batch + s.first_key * rows.row;
}

// A key's offset from there, in elements; of a page's key only if it exists.
DEVICE long long key_offset(const Problem& p, const Rows& rows, const Sequence& s, int key) {
#if PAGED
  if (key >= s.keys) return 0;
  const int at = s.first_key + key;
  const int page = p.block_table[s.b * p.table_stride + at / p.page_size];
  return page * rows.batch + (at % p.page_size) * rows.row;
#else
  return key * rows.row;
#endif
}

// Eight numbers of a row from dim `first` on as float16; 0 at dims from `dims` on, or if not inside.
DEVICE uint4 load_chunk(
    const unsigned short* row, long long stride, int first, int dims, bool inside) {
#if ALIGNED
  uint4 v = load_global(row + first, inside && first < dims);
#else
  unsigned short e[8];
  UNROLL for (int x = 0; x < 8; x++)
    e[x] = inside && first + x < dims ? row[(first + x) * stride] : 0;
  uint4 v = {pack(e[0], e[1]), pack(e[2], e[3]), pack(e[4], e[5]), pack(e[6], e[7])};
#endif
#if ELEMENT == 1
  v = {halves_of_bfloat16(v.x), halves_of_bfloat16(v.y), halves_of_bfloat16(v.z),
       halves_of_bfloat16(v.w)};
#endif
  return v;
}

// A chunk of v without NaN and infinities.
DEVICE uint4 finite_chunk(uint4 v) {
  return {finite_halves(v.x), finite_halves(v.y), finite_halves(v.z), finite_halves(v.w)};
}

DEVICE unsigned short element_of(float x) {
  return ELEMENT == 1 ? float_to_bfloat16(x) : half_of(x);
}

// Two neighbouring numbers of a row of out, from an even dim on.
DEVICE void store_pair(unsigned short* row, long long stride, int dim, int dims, float x, float y) {
#if ALIGNED
  if (dim < dims) *reinterpret_cast<unsigned*>(row + dim) = pack(element_of(x), element_of(y));
#else
  if (dim < dims) row[dim * stride] = element_of(x);
  if (dim + 1 < dims) row[(dim + 1) * stride] = element_of(y);
#endif
}

// [first, last) keys that some row of first_row .. last_row sees by the window.
DEVICE void visible_keys(
    const Problem& p, const Sequence& s, int first_row, int last_row, int& first, int& last) {
  const int offset = s.keys - s.rows;
  first = p.left >= 0 ? larger(first_row + offset - p.left, 0) : 0;
  last = p.right >= 0 ? smaller(last_row + offset + p.right + 1, s.keys) : s.keys;
}

// [first, last) keys that every row of first_row .. last_row sees by the window.
DEVICE void whole_keys(
    const Problem& p, const Sequence& s, int first_row, int last_row, int& first, int& last) {
  const int offset = s.keys - s.rows;
  first = p.left >= 0 ? larger(last_row + offset - p.left, 0) : 0;
  last = p.right >= 0 ? smaller(first_row + offset + p.right + 1, s.keys) : s.keys;
}

DEVICE bool in_window(const Problem& p, const Sequence& s, int row, int key) {
  const int at = row + s.keys - s.rows;
  return key < s.keys && (p.left < 0 || key >= at - p.left) &&
         (p.right < 0 || key <= at + p.right);
}

DEVICE float bias_at(const Problem& p, const Sequence& s, int h, int row, int key) {
  const long long at =
      s.b * p.bias.batch + h * p.bias.head + row * p.bias.row + key * p.bias.key;
#if BIAS == 3
  return static_cast<const float*>(p.bias.data)[at];
#else
  return element_to_float(static_cast<const unsigned short*>(p.bias.data)[at], BIAS - 1);
#endif
}

DEVICE bool mask_at(const Problem& p, const Sequence& s, int h, int row, int key) {
  return static_cast<const unsigned char*>(
      p.mask.data)[s.b * p.mask.batch + h * p.mask.head + row * p.mask.row + key * p.mask.key];
}

DEVICE bool is_visible(const Problem& p, const Sequence& s, int h, int row, int key) {
  bool visible = row < s.rows && in_window(p, s, row, key);
#if MASK
  visible = visible && mask_at(p, s, h, row, key);
#endif
#if BIAS
  visible = visible && bias_at(p, s, h, row, key) != -INFINITE;
#endif
  return visible;
}

// The score in base 2 of a product q k. FUSED: nothing but a positive scale stands between them,
// and the multiplication is left to the exponential's fused multiply-add.
DEVICE float score_of(
    const Problem& p, const Sequence& s, int h, int row, int key, float slope, float product) {
#if FUSED
  return product;
#else
  float x = product * p.scale;
#if SOFTCAP
  x = p.softcap * tanh_of(x / p.softcap);
#endif
#if ALIBI
  const int distance = key - row - (s.keys - s.rows);
  x -= slope * (float)(distance < 0 ? -distance : distance);
#endif
#if BIAS
  if (row < s.rows && key < s.keys) x += bias_at(p, s, h, row, key);
#endif
  return x * LOG2E;
#endif
}
