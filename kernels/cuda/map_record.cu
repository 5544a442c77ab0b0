// map_record: logical ids to physical slots, the load of every slot, and the layout of the dispatch, in one pass.
//
// The launcher compiles the model's shape in. What these mean is documented in src/device/map_record.rs:
//   ID_BYTES 4 | 8, TOP_K, EXPERTS, RANKS, SLOTS_PER_RANK, LAYOUT 0 none | 1 bitmask | 2 bool matrix,
//   LANES lanes that share a token, STAGED 0 | 1, BLOCK threads.
//
// Two forms of one body. Direct: every lane looks its ids up in global memory and counts with global atomics; no
// barrier at all, best for few tokens. Staged: a block copies both table buffers to shared memory while the first
// ids are under way (waiting for `active` before the copy would add a round trip), counts in shared memory, and adds
// its histogram to the layer's with one bulk reduction, so a hot slot costs one addition per block.
#include "common.cuh"

#if ID_BYTES == 4
using Id = i32;
#else
using Id = i64;
#endif

constexpr u32 SLOTS = RANKS * SLOTS_PER_RANK;
constexpr u32 WORDS = (RANKS + 31) / 32;
constexpr u32 PER_LANE = TOP_K / LANES;
// Rows and entries of one table buffer, each padded to whole 16-byte vectors.
constexpr u32 ROW_WORDS = (EXPERTS + 3) & ~3u;
constexpr u32 TABLE_WORDS = ROW_WORDS + ((SLOTS + 3) & ~3u);
// Slot counts, then rank counts, each padded: the order in shared memory is that in global memory.
constexpr u32 RANK_COUNTS_AT = (SLOTS + 3) & ~3u;
constexpr u32 COUNT_WORDS = RANK_COUNTS_AT + (LAYOUT ? ((RANKS + 3) & ~3u) : 0);
// One lane an id: ranks are told apart with a warp match. Otherwise: by transposing the lanes' masks.
constexpr bool LANE_PER_ID = PER_LANE == 1;
constexpr u32 SALT_STEP = 0x9E3779B9u;

static_assert(TOP_K % LANES == 0 && (LANES & (LANES - 1)) == 0 && LANES <= 32, "lanes of a token");

struct MapRecord {
  const Id *ids;      // [tokens][TOP_K]
  Id *physical;       // [tokens][TOP_K]
  void *in_rank;      // bitmask: u32 [WORDS][tokens]; bool matrix: u8 [tokens][RANKS]
  u32 *counts;        // [COUNT_WORDS], added to
  const u32 *tables;  // [2][TABLE_WORDS]
  const u32 *active;  // bit 0: which of the two
  const u32 *step;    // {valid tokens, salt}
  u32 *faults;        // ids that no expert has, added to
  u32 tokens;
  u32 reserved;
};
static_assert(sizeof(MapRecord) == 72, "the Rust side asserts the same");

__device__ __forceinline__ void load_ids(const Id *from, i32 (&ids)[PER_LANE]) {
  constexpr u32 BYTES = PER_LANE * sizeof(Id);
  if constexpr (BYTES % 16 == 0 && ID_BYTES == 4) {
#pragma unroll
    for (u32 i = 0; i < BYTES / 16; i++) {
      int4 v = __ldg(reinterpret_cast<const int4 *>(from) + i);
      ids[4 * i] = v.x, ids[4 * i + 1] = v.y, ids[4 * i + 2] = v.z, ids[4 * i + 3] = v.w;
    }
  } else if constexpr (BYTES % 16 == 0) {
#pragma unroll
    for (u32 i = 0; i < BYTES / 16; i++) {
      longlong2 v = __ldg(reinterpret_cast<const longlong2 *>(from) + i);
      // A 64-bit id outside 32 bits names no expert; it must not be cut to one that does.
      ids[2 * i] = v.x == (i32)v.x ? (i32)v.x : 0x7FFFFFFF;
      ids[2 * i + 1] = v.y == (i32)v.y ? (i32)v.y : 0x7FFFFFFF;
    }
  } else {
#pragma unroll
    for (u32 i = 0; i < PER_LANE; i++) {
      Id v = __ldg(from + i);
      ids[i] = v == (Id)(i32)v ? (i32)v : 0x7FFFFFFF;
    }
  }
}

__device__ __forceinline__ void store_slots(Id *to, const i32 (&slots)[PER_LANE]) {
  constexpr u32 BYTES = PER_LANE * sizeof(Id);
  if constexpr (BYTES % 16 == 0 && ID_BYTES == 4) {
#pragma unroll
    for (u32 i = 0; i < BYTES / 16; i++)
      reinterpret_cast<int4 *>(to)[i] =
          make_int4(slots[4 * i], slots[4 * i + 1], slots[4 * i + 2], slots[4 * i + 3]);
  } else if constexpr (BYTES % 16 == 0) {
#pragma unroll
    for (u32 i = 0; i < BYTES / 16; i++)
      reinterpret_cast<longlong2 *>(to)[i] = make_longlong2(slots[2 * i], slots[2 * i + 1]);
  } else {
#pragma unroll
    for (u32 i = 0; i < PER_LANE; i++) to[i] = slots[i];
  }
}

// The slot that serves the expert at this point of 0..65536. A row is `count:12 | offset:20`; with one replica the
// offset is the slot itself, which saves most experts a dependent load. An entry is `last point:16 | slot:16`.
__device__ __forceinline__ u32 choose(const u32 *rows, const u32 *entries, i32 expert, u32 point) {
  u32 row = rows[expert];
  u32 low = row & 0xFFFFFu;
  if ((row >> 20) == 1) return low;
  const u32 *entry = entries + low;
  u32 e = *entry;
  while (point > (e >> 16)) e = *++entry;
  return e & 0xFFFFu;
}

// Four bits to four bytes of 0 or 1.
__device__ __forceinline__ u32 spread4(u32 bits) { return ((bits & 15u) * 0x00204081u) & 0x01010101u; }

// The token's row of the bool matrix, written by its lanes side by side.
__device__ __forceinline__ void store_bools(u8 *row, const u32 (&mask)[WORDS], u32 lane) {
  if constexpr (RANKS % 16 == 0) {
#pragma unroll
    for (u32 c = 0; c < RANKS / 16; c++) {
      u32 bits = mask[c / 2] >> (16 * (c % 2));
      if (c % LANES == lane)
        reinterpret_cast<uint4 *>(row)[c] =
            make_uint4(spread4(bits), spread4(bits >> 4), spread4(bits >> 8), spread4(bits >> 12));
    }
  } else if constexpr (RANKS % 4 == 0) {
#pragma unroll
    for (u32 c = 0; c < RANKS / 4; c++)
      if (c % LANES == lane) reinterpret_cast<u32 *>(row)[c] = spread4(mask[c / 8] >> (4 * (c % 8)));
  } else {
#pragma unroll
    for (u32 r = 0; r < RANKS; r++)
      if (r % LANES == lane) row[r] = (mask[r / 32] >> (r % 32)) & 1u;
  }
}

// Lane r gets, in its bits, who of the 32 lanes has bit r: a 32 x 32 bit transpose in five exchanges.
__device__ __forceinline__ u32 transpose(u32 mask) {
  u32 lane = threadIdx.x & 31, keep = 0x0000FFFFu;
#pragma unroll
  for (u32 s = 16; s; s >>= 1, keep ^= keep << s) {
    u32 other = __shfl_xor_sync(FULL_WARP, mask, s);
    mask = (lane & s) ? ((mask & ~keep) | ((other >> s) & keep)) : ((mask & keep) | ((other << s) & ~keep));
  }
  return mask;
}

extern "C" __global__ void __launch_bounds__(BLOCK, 1) map_record(const __grid_constant__ MapRecord p) {
#if STAGED
  __shared__ __align__(16) u32 table[TABLE_WORDS];
  __shared__ __align__(128) u32 counts[COUNT_WORDS];
#else
  u32 *counts = p.counts;
#endif
  const u32 lane = threadIdx.x % LANES;
  const u32 stride = gridDim.x * (BLOCK / LANES);
  u32 token = (blockIdx.x * BLOCK + threadIdx.x) / LANES;
  // All lanes of a warp stay in the loop while its first token exists.
  u32 first = (blockIdx.x * BLOCK + (threadIdx.x & ~31u)) / LANES;

  i32 ids[PER_LANE];
  if (token < p.tokens) load_ids(p.ids + (u64)token * TOP_K + lane * PER_LANE, ids);
  const u32 valid = __ldg(p.step), salt = __ldg(p.step + 1) * SALT_STEP;
  const bool second = __ldg(p.active) & 1;

#if STAGED
  const uint4 *a = reinterpret_cast<const uint4 *>(p.tables), *b = a + TABLE_WORDS / 4;
  for (u32 i = threadIdx.x; i < TABLE_WORDS / 4; i += BLOCK) {
    uint4 from_a = __ldg(a + i), from_b = __ldg(b + i);
    reinterpret_cast<uint4 *>(table)[i] = second ? from_b : from_a;
  }
  for (u32 i = threadIdx.x; i < COUNT_WORDS; i += BLOCK) counts[i] = 0;
  __syncthreads();
  const u32 *rows = table;
#else
  const u32 *rows = p.tables + (second ? TABLE_WORDS : 0);
#endif
  const u32 *entries = rows + ROW_WORDS;

  [[maybe_unused]] u32 on_rank[WORDS] = {};
  for (; first < p.tokens; first += stride) {
    const bool here = token < p.tokens;
    i32 next[PER_LANE];
    if (token + stride < p.tokens && token + stride > token)
      load_ids(p.ids + (u64)(token + stride) * TOP_K + lane * PER_LANE, next);

    const bool counted = token < valid;
    const u32 point = mix32(token + salt) >> 16;
    u32 mask[WORDS] = {};
    i32 slots[PER_LANE];
    [[maybe_unused]] u32 only_rank = 0;
    [[maybe_unused]] bool recorded = false;
    if (here) {
#pragma unroll
      for (u32 i = 0; i < PER_LANE; i++) {
        const bool known = (u32)ids[i] < EXPERTS;
        const u32 slot = known ? choose(rows, entries, ids[i], point) : 0;
        slots[i] = known ? (i32)slot : ids[i];
        if (known && counted) {
          atomicAdd(counts + slot, 1u);
          if constexpr (LAYOUT != 0) {
            const u32 rank = slot / SLOTS_PER_RANK;
            recorded = true, only_rank = rank;
#pragma unroll
            for (u32 w = 0; w < WORDS; w++) mask[w] |= rank / 32 == w ? 1u << (rank % 32) : 0u;
          }
        }
        if (ids[i] >= (i32)EXPERTS && counted) atomicAdd(p.faults, 1u);
      }
      Id *out = p.physical + (u64)token * TOP_K + lane * PER_LANE;
#if ID_BYTES == 8
      bool whole = true; // ids outside 32 bits pass through uncut
#pragma unroll
      for (u32 i = 0; i < PER_LANE; i++) whole &= slots[i] != 0x7FFFFFFF;
      if (whole) store_slots(out, slots);
      else
        for (u32 i = 0; i < PER_LANE; i++) {
          const i64 id = p.ids[(u64)token * TOP_K + lane * PER_LANE + i];
          out[i] = slots[i] == 0x7FFFFFFF ? id : (i64)slots[i];
        }
#else
      store_slots(out, slots);
#endif
    }
    if constexpr (LAYOUT != 0) {
#pragma unroll
      for (u32 w = 0; w < WORDS; w++)
#pragma unroll
        for (u32 s = 1; s < LANES; s <<= 1) mask[w] |= __shfl_xor_sync(FULL_WARP, mask[w], s);
      if (here && LAYOUT == 1 && lane == 0) {
#pragma unroll
        for (u32 w = 0; w < WORDS; w++) static_cast<u32 *>(p.in_rank)[(u64)w * p.tokens + token] = mask[w];
      }
      if (here && LAYOUT == 2) store_bools(static_cast<u8 *>(p.in_rank) + (u64)token * RANKS, mask, lane);
      if constexpr (LANE_PER_ID) {
        // Of the lanes whose ids go to one rank of one token, the lowest counts.
        const u32 lane_in_warp = threadIdx.x & 31;
        const u32 key = recorded ? only_rank * 32 + lane_in_warp / LANES : 0x80000000u + lane_in_warp;
        const u32 same = __match_any_sync(FULL_WARP, key);
        if (recorded && (same & ((1u << lane_in_warp) - 1)) == 0) atomicAdd(counts + RANK_COUNTS_AT + only_rank, 1u);
      } else {
#pragma unroll
        for (u32 w = 0; w < WORDS; w++) on_rank[w] += __popc(transpose(lane == 0 ? mask[w] : 0u));
      }
    }
#pragma unroll
    for (u32 i = 0; i < PER_LANE; i++) ids[i] = next[i];
    token += stride;
  }
  if constexpr (LAYOUT != 0 && !LANE_PER_ID) {
#pragma unroll
    for (u32 w = 0; w < WORDS; w++)
      if (on_rank[w]) atomicAdd(counts + RANK_COUNTS_AT + w * 32 + (threadIdx.x & 31), on_rank[w]);
  }
#if STAGED
#if FLUSH_BULK
  // The bulk engine reads shared memory past the barrier: the fence makes the atomics visible to it.
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%0], [%1], %2;" ::"l"(
                     __cvta_generic_to_global(p.counts)),
                 "r"((u32)__cvta_generic_to_shared(counts)), "n"(COUNT_WORDS * 4)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    // Shared memory must outlive the reads; the writes complete with the kernel.
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
  }
#else
  __syncthreads();
  // Two counters an atomic: a count never carries, it would take 2^32 ids in a step.
  for (u32 i = threadIdx.x; i < COUNT_WORDS / 2; i += BLOCK) {
    const u64 pair = reinterpret_cast<const u64 *>(counts)[i];
    if (pair) atomicAdd(reinterpret_cast<u64 *>(p.counts) + i, pair);
  }
#endif
#endif
}
