// Runs a kernel of backends/volta/kernels on a CPU: every thread of a block is a coroutine, and
// those of a warp meet at each shuffle, matrix product and barrier. What the lanes hold follows the
// fragment maps of the PTX ISA (mma.m8n8k4, mma.m16n8k8, ldmatrix), written here independently.
//
// A block's shared memory starts as NaN. Lanes that don't meet stop the program.

#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define DEVICE static inline
#define KERNEL(threads, blocks) extern "C" void
#define UNROLL
#define NO_UNROLL

struct uint4 { unsigned x, y, z, w; };
struct Index { int x; };

namespace emulator {

constexpr int MOST_THREADS = 512, STACK = 1 << 18;

struct Thread {
  ucontext_t start;
  jmp_buf resume;
  bool started, done;
  char* stack;
};

static Thread threads[MOST_THREADS];
static jmp_buf scheduler;
static int current, count, block;
static void (*body)();
static std::vector<unsigned char> shared;

// A meeting of a group of lanes: each brings words, the last one computes for all.
struct Meeting { int arrived, generation; };
static Meeting warps[MOST_THREADS / 32], everyone;
static unsigned brought[MOST_THREADS][16], taken[MOST_THREADS][16];

inline void yield() {
  if (!_setjmp(threads[current].resume)) _longjmp(scheduler, 1);
}

template <class Compute>
void meet(Meeting& meeting, int size, Compute compute) {
  const int generation = meeting.generation;
  if (++meeting.arrived == size) {
    compute();
    meeting.arrived = 0;
    meeting.generation++;
    return;
  }
  while (meeting.generation == generation) yield();
}

template <class Compute>
void meet_warp(Compute compute) {
  meet(warps[current / 32], 32, compute);
}

inline void entry() {
  body();
  threads[current].done = true;
  _longjmp(scheduler, 1);
}

inline void run_block(int index, int thread_count, int shared_bytes) {
  block = index;
  count = thread_count;
  shared.assign(shared_bytes, 0xff);
  std::memset(warps, 0, sizeof warps);
  everyone = {0, 0};
  for (int i = 0; i < count; i++) {
    Thread& t = threads[i];
    if (!t.stack) t.stack = static_cast<char*>(std::malloc(STACK));
    t.started = t.done = false;
  }
  int finished = 0;
  long idle = 0;
  while (finished < count) {
    finished = 0;
    const long before = idle++;
    for (current = 0; current < count; current++) {
      Thread& t = threads[current];
      if (t.done) { finished++; continue; }
      const volatile int keep = finished;
      if (!_setjmp(scheduler)) {
        if (t.started) _longjmp(t.resume, 1);
        t.started = true;
        getcontext(&t.start);
        t.start.uc_stack.ss_sp = t.stack;
        t.start.uc_stack.ss_size = STACK;
        t.start.uc_link = nullptr;
        makecontext(&t.start, entry, 0);
        setcontext(&t.start);
      }
      finished = keep;
    }
    if (before > 100000000L) { std::fprintf(stderr, "lanes don't meet\n"); std::abort(); }
  }
}

inline float half_value(unsigned short h) {
  _Float16 x;
  std::memcpy(&x, &h, 2);
  return static_cast<float>(x);
}

inline float half_at(const unsigned* words, int index) {
  return half_value(static_cast<unsigned short>(words[index / 2] >> (16 * (index % 2))));
}

inline unsigned bits(float x) { unsigned u; std::memcpy(&u, &x, 4); return u; }
inline float number(unsigned u) { float x; std::memcpy(&x, &u, 4); return x; }

// Products of the four quad-pairs of a warp: words 0, 1 are a, 2, 3 are b, 4 .. 11 are c.
inline void quad_pairs(int warp, bool b_by_column) {
  for (int pair = 0; pair < 4; pair++) {
    float a[8][4], b[4][8];
    for (int l = 0; l < 32; l++) {
      if (((l >> 2) & 3) != pair) continue;
      const unsigned* in = brought[32 * warp + l];
      const int own = (l & 3) + 4 * (l >> 4);
      for (int x = 0; x < 4; x++) {
        a[own][x] = half_at(in, x);
        if (b_by_column) b[x][own] = half_at(in + 2, x);
        else b[l & 3][4 * (l >> 4) + x] = half_at(in + 2, x);
      }
    }
    for (int l = 0; l < 32; l++) {
      if (((l >> 2) & 3) != pair) continue;
      for (int e = 0; e < 8; e++) {
        const int row = (l & 1) + (e & 2) + 4 * (l >> 4), column = (e & 4) + (l & 2) + (e & 1);
        float sum = number(brought[32 * warp + l][4 + e]);
        for (int k = 0; k < 4; k++) sum += a[row][k] * b[k][column];
        taken[32 * warp + l][e] = bits(sum);
      }
    }
  }
}

// Words 0, 1 are a[16x8], 2 is b[8x8], 3 .. 6 are c[16x8].
inline void sixteen_by_eight(int warp) {
  float a[16][8], b[8][8];
  for (int l = 0; l < 32; l++) {
    const unsigned* in = brought[32 * warp + l];
    const int g = l >> 2, c = 2 * (l & 3);
    for (int x = 0; x < 2; x++) {
      a[g][c + x] = half_at(in, x);
      a[g + 8][c + x] = half_at(in + 1, x);
      b[c + x][g] = half_at(in + 2, x);
    }
  }
  for (int l = 0; l < 32; l++)
    for (int e = 0; e < 4; e++) {
      const int row = (l >> 2) + 8 * (e >> 1), column = 2 * (l & 3) + (e & 1);
      float sum = number(brought[32 * warp + l][3 + e]);
      for (int k = 0; k < 8; k++) sum += a[row][k] * b[k][column];
      taken[32 * warp + l][e] = bits(sum);
    }
}

inline unsigned short half_in_shared(unsigned at) {
  unsigned short h;
  if (at + 2 > shared.size()) { std::fprintf(stderr, "ldmatrix outside\n"); std::abort(); }
  std::memcpy(&h, &shared[at], 2);
  return h;
}

inline void matrices(int warp, bool transposed) {
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < 4; i++) {
      unsigned short two[2];
      for (int x = 0; x < 2; x++) {
        const int major = l >> 2, minor = 2 * (l & 3) + x;
        const int row = transposed ? minor : major, column = transposed ? major : minor;
        two[x] = half_in_shared(brought[32 * warp + 8 * i + row][0] + 2 * column);
      }
      taken[32 * warp + l][i] = two[0] | (unsigned)two[1] << 16;
    }
}

// Addresses of this block's 16-byte accesses, thread by thread in order, while `tracing` is set.
static bool tracing;
static std::vector<unsigned> loads[MOST_THREADS], stores[MOST_THREADS];

inline void trace(std::vector<unsigned>* accesses, unsigned at) {
  if (tracing) accesses[current].push_back(at);
}

inline void check(unsigned at, unsigned size) {
  if (at % size || at + size > shared.size()) {
    std::fprintf(stderr, "shared memory at %u + %u of %zu\n", at, size, shared.size());
    std::abort();
  }
}

inline void product(float* c, int words, const unsigned* operands, int operand_words,
                    void (*compute)(int)) {
  unsigned* mine = brought[current];
  std::memcpy(mine, operands, 4 * operand_words);
  std::memcpy(mine + operand_words, c, 4 * words);
  meet_warp([&] { compute(current / 32); });
  std::memcpy(c, taken[current], 4 * words);
}

}  // namespace emulator

#define threadIdx (Index{emulator::current})
#define blockIdx (Index{emulator::block})

DEVICE unsigned shared_base() { return 0; }
DEVICE void __syncthreads() {
  emulator::meet(emulator::everyone, emulator::count, [] {});
}
DEVICE int __syncthreads_or(int value) {
  emulator::brought[emulator::current][0] = value;
  emulator::meet(emulator::everyone, emulator::count, [] {
    unsigned any = 0;
    for (int i = 0; i < emulator::count; i++) any |= emulator::brought[i][0];
    for (int i = 0; i < emulator::count; i++) emulator::taken[i][0] = any;
  });
  return emulator::taken[emulator::current][0] != 0;
}
DEVICE uint4 load_shared(unsigned at) {
  emulator::check(at, 16);
  emulator::trace(emulator::loads, at);
  uint4 v;
  std::memcpy(&v, &emulator::shared[at], 16);
  return v;
}
DEVICE void store_shared(unsigned at, uint4 v) {
  emulator::check(at, 16);
  emulator::trace(emulator::stores, at);
  std::memcpy(&emulator::shared[at], &v, 16);
}
DEVICE uint4 load_global(const unsigned short* at, bool inside) {
  uint4 v = {0, 0, 0, 0};
  if (inside) std::memcpy(&v, at, 16);
  return v;
}
DEVICE float load_shared_float(unsigned at) {
  emulator::check(at, 4);
  float v;
  std::memcpy(&v, &emulator::shared[at], 4);
  return v;
}
DEVICE void store_shared_float(unsigned at, float v) {
  emulator::check(at, 4);
  std::memcpy(&emulator::shared[at], &v, 4);
}
DEVICE void mma884_col(float (&c)[8], unsigned a0, unsigned a1, unsigned b0, unsigned b1) {
  const unsigned in[] = {a0, a1, b0, b1};
  emulator::product(c, 8, in, 4, [](int warp) { emulator::quad_pairs(warp, true); });
}
DEVICE void mma884_row(float (&c)[8], unsigned a0, unsigned a1, unsigned b0, unsigned b1) {
  const unsigned in[] = {a0, a1, b0, b1};
  emulator::product(c, 8, in, 4, [](int warp) { emulator::quad_pairs(warp, false); });
}
template <int HALF>
DEVICE void mma1688(float (&c)[8], unsigned a0, unsigned a1, unsigned b0) {
  const unsigned in[] = {a0, a1, b0};
  emulator::product(c + 4 * HALF, 4, in, 3, emulator::sixteen_by_eight);
}
DEVICE uint4 load_matrices_either(unsigned at, bool transposed) {
  emulator::check(at, 16);
  emulator::trace(emulator::loads, at);
  emulator::brought[emulator::current][0] = at;
  emulator::meet_warp([=] { emulator::matrices(emulator::current / 32, transposed); });
  const unsigned* t = emulator::taken[emulator::current];
  return {t[0], t[1], t[2], t[3]};
}
DEVICE uint4 load_matrices(unsigned at) { return load_matrices_either(at, false); }
DEVICE uint4 load_matrices_transposed(unsigned at) { return load_matrices_either(at, true); }
DEVICE unsigned exchange(unsigned v, int lanes) {
  emulator::brought[emulator::current][0] = v;
  emulator::meet_warp([=] {
    const int first = emulator::current / 32 * 32;
    for (int l = 0; l < 32; l++)
      emulator::taken[first + l][0] = emulator::brought[first + (l ^ lanes)][0];
  });
  return emulator::taken[emulator::current][0];
}
DEVICE float exchange(float v, int lanes) {
  return emulator::number(exchange(emulator::bits(v), lanes));
}
DEVICE float exp2_of(float x) { return std::exp2(x); }
DEVICE unsigned short half_of(float x) {
  const _Float16 h = static_cast<_Float16>(x);
  unsigned short bits;
  std::memcpy(&bits, &h, 2);
  return bits;
}
DEVICE float float_of_half(unsigned short h) { return emulator::half_value(h); }
DEVICE unsigned pack(unsigned short low, unsigned short high) { return low | (unsigned)high << 16; }
DEVICE unsigned bits_of(float x) { return emulator::bits(x); }
DEVICE float float_of_bits(unsigned x) { return emulator::number(x); }
