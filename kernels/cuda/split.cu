// split: one batch's counts divided over the replicas of each expert, so that the most loaded rank has the least.
//
// Minimising the sum of the squares of the ranks' loads reaches the same optimum as minimising their maximum, and can
// be done expert by expert: each water-fills its count over its ranks, given everything else (Gauss-Seidel). Experts
// of one colour share no rank, so they go at once; a sweep is all colours, over-relaxed. The last sweep is plain and
// gives whole tokens. Where no two replicated experts share a rank there is one colour, and one sweep is exact.
//
// One block. A lane per replica; the lanes of an expert are a segment of a power of two inside a warp, so levels are
// found with shuffles; ranks' loads are in shared memory. src/split/ packs the lanes and is the reference: the same
// operations in the same order, so the results are equal to the bit.
//
// Compiled in: EXPERTS, RANKS, SLOTS, COLOURS, ONE_WARP (32 lanes do all sweeps), BLOCK.
#include "common.cuh"

constexpr float FAR = 1e30f; // the load of a rank that is none: no level reaches it
constexpr u32 SHARED = 0xFFFFFFFFu, EMPTY = 0xFFFFFFFEu; // of `single`
constexpr float STEPS = 16.f; // whole tokens are cut from running sums in sixteenths
constexpr u32 NEWTON_MAX = 12;
constexpr u32 COLOUR_SLOTS = COLOURS ? COLOURS : 1;

struct Split {
  const u32 *counts; // [EXPERTS]
  const u32 *single; // [SLOTS]: expert that is only there, or SHARED, or EMPTY
  const uint4 *lanes; // [COLOURS][lane_count]: see src/split/pack.rs
  u32 *quotas;        // [SLOTS]
  u32 lane_count;
  u32 sweeps;
  float relaxation;
  u32 reserved;
};
static_assert(sizeof(Split) == 48, "the Rust side asserts the same");

__device__ __forceinline__ void sync_lanes(u32 lane_count) {
#if ONE_WARP
  __syncwarp();
#else
  asm volatile("bar.sync 1, %0;" ::"r"(lane_count) : "memory");
#endif
}

__device__ __forceinline__ void order(float &a, float &b) {
  const float low = fminf(a, b);
  b = fmaxf(a, b);
  a = low;
}

// The least mean over prefixes of the sorted loads: exactly the water level.
template <u32 N> __device__ __forceinline__ float level_of_sorted(const float (&s)[N], float count) {
  float sum = s[0], level = count + sum;
#pragma unroll
  for (u32 n = 1; n < N; n++) {
    sum += s[n];
    level = fminf(level, (count + sum) * (1.f / (float)(n + 1)));
  }
  return level;
}

// The level of segments of up to eight lanes: every lane sees all loads of its segment, and sorts them.
template <u32 LOG> __device__ __forceinline__ float sorted_level(float load, float count, u32 own_log) {
  constexpr u32 N = 1u << LOG;
  float s[N];
  s[0] = load;
#pragma unroll
  for (u32 o = 1; o < N; o++) {
    const float other = __shfl_xor_sync(FULL_WARP, load, o);
    s[o] = o >> own_log ? FAR : other;
  }
  if constexpr (LOG == 1) order(s[0], s[1]);
  if constexpr (LOG == 2) {
    order(s[0], s[1]), order(s[2], s[3]);
    order(s[0], s[2]), order(s[1], s[3]);
    order(s[1], s[2]);
  }
  if constexpr (LOG == 3) { // Batcher's network
    order(s[0], s[1]), order(s[2], s[3]), order(s[4], s[5]), order(s[6], s[7]);
    order(s[0], s[2]), order(s[1], s[3]), order(s[4], s[6]), order(s[5], s[7]);
    order(s[1], s[2]), order(s[5], s[6]), order(s[0], s[4]), order(s[3], s[7]);
    order(s[1], s[5]), order(s[2], s[6]);
    order(s[1], s[4]), order(s[3], s[6]);
    order(s[2], s[4]), order(s[3], s[5]);
    order(s[3], s[4]);
  }
  return level_of_sorted<N>(s, count);
}

// The level of wider segments: Newton's method on the set of lanes below it, begun at those that had tokens.
__device__ __forceinline__ float newton_level(float load, float count, bool below, u32 own_log, u32 warp_log,
                                              const float *inverse) {
  const u32 size = 1u << own_log, at = (threadIdx.x & 31) & ~(size - 1);
  const u32 mine = (size == 32 ? FULL_WARP : (1u << size) - 1) << at;
  float level = FAR;
  for (u32 i = 0; i < NEWTON_MAX; i++) {
    const u32 n = __popc(__ballot_sync(FULL_WARP, below) & mine);
    float sum = below ? load : 0.f;
    for (u32 q = 0; q < warp_log; q++) {
      const float other = __shfl_xor_sync(FULL_WARP, sum, 1u << q);
      if (q < own_log) sum += other;
    }
    level = n ? (count + sum) * inverse[n] : FAR;
    const bool next = load < level && load < FAR;
    if (!__any_sync(FULL_WARP, next != below)) break;
    below = next;
  }
  return level;
}

extern "C" __global__ void __launch_bounds__(BLOCK) split(const __grid_constant__ Split p) {
  __shared__ u32 counts[EXPERTS];
  __shared__ u32 base[RANKS];
  __shared__ float loads[RANKS];
  __shared__ float inverse[33];
  const u32 t = threadIdx.x;
  const bool sweeping = t < p.lane_count;

  uint4 packed[COLOUR_SLOTS];
  if (sweeping) {
#pragma unroll
    for (u32 k = 0; k < COLOURS; k++) packed[k] = __ldg(p.lanes + k * p.lane_count + t);
  }
  for (u32 e = t; e < EXPERTS; e += BLOCK) counts[e] = __ldg(p.counts + e);
  for (u32 r = t; r < RANKS; r += BLOCK) base[r] = 0;
  if (t < 33) inverse[t] = t ? __frcp_rn((float)t) : 0.f;
  __syncthreads();

  for (u32 s = t; s < SLOTS; s += BLOCK) {
    const u32 expert = __ldg(p.single + s);
    if (expert == SHARED) continue;
    const u32 count = expert == EMPTY ? 0 : counts[expert];
    p.quotas[s] = count;
    if (count) atomicAdd(base + s / (SLOTS / RANKS), count);
  }
  float x[COLOUR_SLOTS], count[COLOUR_SLOTS];
  if (sweeping) {
#pragma unroll
    for (u32 k = 0; k < COLOURS; k++) {
      const bool here = packed[k].x >> 31;
      count[k] = (float)counts[packed[k].x & 0xFFFFu];
      const u32 start = here ? __float2uint_rn(__uint_as_float(packed[k].z) * count[k]) : 0;
      x[k] = (float)start;
      if (start) atomicAdd(base + (packed[k].y & 0xFFFFu), start);
    }
  }
  __syncthreads();
  for (u32 r = t; r < RANKS; r += BLOCK) loads[r] = (float)base[r];
  __syncthreads();
  if (!sweeping) return;

  for (u32 sweep = 1; sweep <= p.sweeps; sweep++) {
    const bool last = sweep == p.sweeps;
#pragma unroll
    for (u32 k = 0; k < COLOURS; k++) {
      const u32 what = packed[k].x, rank = packed[k].y & 0xFFFFu;
      const bool here = what >> 31;
      const u32 own_log = (what >> 16) & 7u, warp_log = (what >> 19) & 7u;
      const float load = here ? loads[rank] - x[k] : FAR;
      float level;
      if (warp_log == 1) level = sorted_level<1>(load, count[k], own_log);
      else if (warp_log == 2) level = sorted_level<2>(load, count[k], own_log);
      else if (warp_log == 3) level = sorted_level<3>(load, count[k], own_log);
      else level = newton_level(load, count[k], here && x[k] > 0.f, own_log, warp_log, inverse);
      const float plain = fmaxf(level - load, 0.f);
      float next;
      if (!last) {
        next = x[k] + p.relaxation * (plain - x[k]);
        if (own_log == 1) {
          next = fminf(fmaxf(next, 0.f), count[k]);
        }
        if (warp_log > 1) {
          // A wider segment that would overshoot below zero takes the plain step, all lanes alike.
          const u32 size = 1u << own_log;
          const u32 mine = (size == 32 ? FULL_WARP : (1u << size) - 1) << ((t & 31) & ~(size - 1));
          if ((__ballot_sync(FULL_WARP, here && next < 0.f) & mine) && own_log > 1) next = plain;
        }
      } else {
        const u32 size = 1u << own_log, place = t & (size - 1);
        u32 upto = here ? __float2uint_rn(plain * STEPS) : 0;
        for (u32 s = 1; s < 1u << warp_log; s <<= 1) {
          const u32 left = __shfl_up_sync(FULL_WARP, upto, s);
          if (place >= s) upto += left;
        }
        const u32 whole = counts[what & 0xFFFFu];
        const bool end = (what >> 30) & 1u;
        const u32 cut = end ? whole : min((upto + (u32)STEPS / 2) / (u32)STEPS, whole);
        const u32 before = __shfl_up_sync(FULL_WARP, cut, 1);
        const u32 quota = cut - (place ? before : 0);
        if (here) p.quotas[packed[k].y >> 16] = quota;
        next = (float)quota;
      }
      if (here) {
        x[k] = next;
        loads[rank] = load + next;
      }
      sync_lanes(p.lane_count);
    }
  }
}
