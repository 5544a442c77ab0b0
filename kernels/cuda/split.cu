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
// What a lane knows of each colour is one 16-byte record in shared memory, read ahead of the barrier: registers would
// tie the code to the number of colours, and a new plan would have to be compiled.
//
// Compiled in: EXPERTS, RANKS, SLOTS, ONE_WARP (32 lanes do all sweeps), BLOCK.
#include "common.cuh"

constexpr float FAR = 1e30f; // the load of a rank that is none: no level reaches it
constexpr u32 SHARED = 0xFFFFFFFFu, EMPTY = 0xFFFFFFFEu; // of `single`
constexpr float STEPS = 16.f; // whole tokens are cut from running sums in sixteenths
constexpr u32 NEWTON_MAX = 12;

struct Split {
  const u32 *counts; // [EXPERTS]
  const u32 *single; // [SLOTS]: expert that is only there, or SHARED, or EMPTY
  const uint4 *lanes; // [colours][lane_count]: see src/split/pack.rs
  u32 *quotas;        // [SLOTS]
  u32 lane_count;
  u32 sweeps;
  float relaxation;
  u32 colours;
};
static_assert(sizeof(Split) == 48, "the Rust side asserts the same");

// The tokens of the part `from:16 | to - 1:16` of an expert's count.
__device__ __forceinline__ u32 tokens_of_part(u32 count, u32 part) {
  const u32 from = part & 0xFFFFu, to = (part >> 16) + 1;
  return (u32)((u64)count * to >> 16) - (u32)((u64)count * from >> 16);
}

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

// What a lane knows of a colour.
struct Record {
  u32 what;  // expert:16 | log:3 | warp_log:3 | 0:8 | end:1 | here:1
  u32 where; // rank:16 | slot:16
  float x;   // tokens given to the lane's replica
  u32 whole; // tokens that the segment divides
};
static_assert(sizeof(Record) == 16, "one vector");

extern __shared__ uint4 record_words[];

// The same, taken apart ahead of the step that needs it.
struct Lane {
  u32 rank, slot, own_log, warp_log, whole, expert_end;
  float x, count;
  bool here;

  __device__ __forceinline__ explicit Lane(const Record &r)
      : rank(r.where & 0xFFFFu), slot(r.where >> 16), own_log((r.what >> 16) & 7u), warp_log((r.what >> 19) & 7u),
        whole(r.whole), expert_end((r.what >> 30) & 1u), x(r.x), count((float)r.whole), here(r.what >> 31) {}
};

// The lane's part after an over-relaxed step. Where zero cuts a part, their sum is off until the next steps, which aim
// at parts that sum to the count; the last step is plain.
__device__ __forceinline__ float relaxed(const Lane &l, float level, float load, float relaxation) {
  const float plain = fmaxf(level - load, 0.f);
  return fmaxf(l.x + relaxation * (plain - l.x), 0.f);
}

// The water level of the lane's segment; the way depends on the widest segment of the warp.
__device__ __forceinline__ float water_level(const Lane &l, float load, const float *inverse) {
  if (l.warp_log == 1) return sorted_level<1>(load, l.count, l.own_log);
  if (l.warp_log == 2) return sorted_level<2>(load, l.count, l.own_log);
  if (l.warp_log == 3) return sorted_level<3>(load, l.count, l.own_log);
  return newton_level(load, l.count, l.here && l.x > 0.f, l.own_log, l.warp_log, inverse);
}

// The lane's whole tokens: cut where the segment's running sums round to.
__device__ __forceinline__ u32 whole_tokens(const Lane &l, float plain) {
  const u32 place = threadIdx.x & ((1u << l.own_log) - 1);
  u32 upto = l.here ? __float2uint_rn(plain * STEPS) : 0;
  for (u32 s = 1; s < 1u << l.warp_log; s <<= 1) {
    const u32 left = __shfl_up_sync(FULL_WARP, upto, s);
    if (place >= s) upto += left;
  }
  const u32 cut = l.expert_end ? l.whole : min((upto + (u32)STEPS / 2) / (u32)STEPS, l.whole);
  const u32 before = __shfl_up_sync(FULL_WARP, cut, 1);
  return cut - (place ? before : 0);
}

extern "C" __global__ void __launch_bounds__(BLOCK, 1) split(const __grid_constant__ Split p) {
  __shared__ u32 counts[EXPERTS];
  __shared__ u32 base[RANKS];
  __shared__ float loads[RANKS];
  __shared__ float inverse[33];
  Record *records = reinterpret_cast<Record *>(record_words);
  const u32 t = threadIdx.x, record_count = p.colours * p.lane_count;

  // All loads first, so that they are under way together.
  for (u32 i = t; i < record_count; i += BLOCK) record_words[i] = __ldg(p.lanes + i);
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
  for (u32 i = t; i < record_count; i += BLOCK) {
    // As packed: x is the start share, whole the part of the count.
    Record r = records[i];
    r.whole = tokens_of_part(counts[r.what & 0xFFFFu], r.whole);
    const u32 start = r.what >> 31 ? __float2uint_rn(r.x * (float)r.whole) : 0;
    r.x = (float)start;
    records[i] = r;
    if (start) atomicAdd(base + (r.where & 0xFFFFu), start);
  }
  __syncthreads();
  for (u32 r = t; r < RANKS; r += BLOCK) loads[r] = (float)base[r];
  __syncthreads();
  if (t >= p.lane_count || record_count == 0) return;

  Lane l(records[t]);
  for (u32 sweep = 1; sweep < p.sweeps; sweep++) {
#pragma unroll 1
    for (u32 i = t; i < record_count; i += p.lane_count) {
      const u32 following = i + p.lane_count < record_count ? i + p.lane_count : t;
      // Read ahead, off the way from barrier to barrier. Only with one colour is it the record of this very step.
      Record ahead = records[following];
      const float load = l.here ? loads[l.rank] - l.x : FAR;
      const float next = relaxed(l, water_level(l, load, inverse), load, p.relaxation);
      if (l.here) {
        loads[l.rank] = load + next;
        records[i].x = next;
        if (following == i) ahead.x = next;
      }
      l = Lane(ahead);
      sync_lanes(p.lane_count);
    }
  }
#pragma unroll 1
  for (u32 i = t; i < record_count; i += p.lane_count) {
    const float load = l.here ? loads[l.rank] - l.x : FAR;
    const float level = water_level(l, load, inverse);
    const u32 quota = whole_tokens(l, fmaxf(level - load, 0.f));
    if (l.here) {
      loads[l.rank] = load + (float)quota;
      p.quotas[l.slot] = quota;
    }
    if (i + p.lane_count < record_count) l = Lane(records[i + p.lane_count]);
    sync_lanes(p.lane_count);
  }
}
