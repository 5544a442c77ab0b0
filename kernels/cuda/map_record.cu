// map_record: logical ids to physical slots, the load of every slot, and the layout of the dispatch, in one pass.
//
// The launcher compiles the model's shape in. What these mean is documented in src/device/map_record.rs:
//   ID_BYTES 4 | 8, TOP_K, EXPERTS, RANKS, SLOTS_PER_RANK, LAYOUT 0 none | 1 bitmask | 2 bool matrix,
//   LANES lanes that share a token, STAGED 0 | 1, BLOCK threads.
//
// Two forms of one body. Direct: one pass, every lane looks its ids up in global memory (one 16-byte row settles an
// expert of up to three replicas) and counts with global atomics; no barrier at all, best for few tokens. Staged: a
// block copies both compact tables to shared memory while the first ids are under way (waiting for `active` before the
// copy would add a round trip), counts in shared memory, and adds its histogram to the layer's at the end, so a hot
// slot costs one addition per block.
#include "common.cuh"

#if ID_BYTES == 4
using Id = i32;
#else
using Id = i64;
#endif

constexpr u32 SLOTS = RANKS * SLOTS_PER_RANK;
constexpr u32 WORDS = (RANKS + 31) / 32;
constexpr u32 PER_LANE = TOP_K / LANES;
// One table buffer, see src/device_table.rs: first words, groups of four entries, direct rows.
constexpr u32 GROUPS_AT = (EXPERTS + 3) & ~3u;
constexpr u32 SPARE = SLOTS - EXPERTS;
constexpr u32 COMPACT_WORDS = GROUPS_AT + (4 * SPARE < 2 * SLOTS ? 4 * SPARE : (2 * SLOTS + 3) & ~3u);
constexpr u32 TABLE_WORDS = COMPACT_WORDS + 4 * EXPERTS;
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

// Sixteen bytes of ids.
union Vector {
  uint4 bits;
  Id ids[16 / sizeof(Id)];
};
constexpr u32 VECTOR_IDS = 16 / sizeof(Id);
constexpr bool WHOLE_VECTORS = PER_LANE % VECTOR_IDS == 0;

__device__ __forceinline__ void load_ids(const Id *from, Id (&ids)[PER_LANE]) {
  if constexpr (WHOLE_VECTORS) {
#pragma unroll
    for (u32 i = 0; i < PER_LANE / VECTOR_IDS; i++) {
      Vector v;
      v.bits = __ldg(reinterpret_cast<const uint4 *>(from) + i);
#pragma unroll
      for (u32 k = 0; k < VECTOR_IDS; k++) ids[i * VECTOR_IDS + k] = v.ids[k];
    }
  } else {
#pragma unroll
    for (u32 i = 0; i < PER_LANE; i++) ids[i] = __ldg(from + i);
  }
}

__device__ __forceinline__ void store_ids(Id *to, const Id (&ids)[PER_LANE]) {
  if constexpr (WHOLE_VECTORS) {
#pragma unroll
    for (u32 i = 0; i < PER_LANE / VECTOR_IDS; i++) {
      Vector v;
#pragma unroll
      for (u32 k = 0; k < VECTOR_IDS; k++) v.ids[k] = ids[i * VECTOR_IDS + k];
      reinterpret_cast<uint4 *>(to)[i] = v.bits;
    }
  } else {
#pragma unroll
    for (u32 i = 0; i < PER_LANE; i++) to[i] = ids[i];
  }
}

// An id that an expert has; the comparison is as wide as the id, so none is cut to one that names an expert.
__device__ __forceinline__ bool known(Id id) {
#if ID_BYTES == 4
  return (u32)id < EXPERTS;
#else
  return (u64)id < EXPERTS;
#endif
}

// Of ascending entries the first whose last point is not below; 0 if there is none. An entry is
// `last point:16 | slot:16`, so the one with the least unsigned distance from `point << 16` is sought: no branches.
__device__ __forceinline__ u32 pick(u32 a, u32 b, u32 c, u32 d, u32 point16) {
  const u32 nearest = min(min(a - point16, b - point16), min(c - point16, d - point16));
  return point16 > d ? 0u : point16 + nearest;
}

// The slots that serve the experts at this point of 0..65536, in the low half of each entry. All ids go on together:
// their look-ups do not wait for one another. Ids that need no group read the first one, all the same word.
__device__ __forceinline__ void choose(const u32 *table, const Id (&ids)[PER_LANE], u32 point16,
                                       u32 (&entry)[PER_LANE]) {
  [[maybe_unused]] const uint4 *groups = reinterpret_cast<const uint4 *>(table + GROUPS_AT);
  [[maybe_unused]] u32 at[PER_LANE];
  bool more = false;
#if STAGED
#pragma unroll
  for (u32 i = 0; i < PER_LANE; i++) entry[i] = table[known(ids[i]) ? (u32)ids[i] : 0];
  if constexpr (SPARE == 0) return;
#pragma unroll
  for (u32 i = 0; i < PER_LANE; i++) {
    // Several replicas: the first word is where their groups begin.
    const bool several = entry[i] < 0x10000u;
    at[i] = several ? entry[i] : 0;
    const uint4 g = groups[at[i]];
    entry[i] = several ? pick(g.x, g.y, g.z, g.w, point16) : entry[i];
    more |= point16 > entry[i];
  }
#else
  const uint4 *rows = reinterpret_cast<const uint4 *>(table + COMPACT_WORDS);
#pragma unroll
  for (u32 i = 0; i < PER_LANE; i++) {
    const uint4 row = __ldg(rows + (known(ids[i]) ? (u32)ids[i] : 0));
    entry[i] = pick(row.x, row.y, row.z, row.z, point16);
    at[i] = row.w;
    more |= point16 > entry[i];
  }
#endif
  while (more) {
    more = false;
#pragma unroll
    for (u32 i = 0; i < PER_LANE; i++) {
      const bool open = point16 > entry[i];
      at[i] += open;
      const uint4 g = groups[open ? at[i] : 0];
      entry[i] = open ? pick(g.x, g.y, g.z, g.w, point16) : entry[i];
      more |= point16 > entry[i];
    }
  }
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
  __shared__ __align__(16) u32 table[COMPACT_WORDS];
  // One more than is added to the layer's: where ids go that are not counted.
  __shared__ __align__(16) u32 counts[COUNT_WORDS + 1];
#else
  u32 *counts = p.counts;
#endif
  const u32 lane = threadIdx.x % LANES;
  const u32 stride = gridDim.x * (BLOCK / LANES);
  u32 token = (blockIdx.x * BLOCK + threadIdx.x) / LANES;

  Id ids[PER_LANE];
  if (token < p.tokens) load_ids(p.ids + (u64)token * TOP_K + lane * PER_LANE, ids);
  const u32 valid = __ldg(p.step), salt = __ldg(p.step + 1) * SALT_STEP;
  const bool second = __ldg(p.active) & 1;

#if STAGED
  const uint4 *a = reinterpret_cast<const uint4 *>(p.tables), *b = a + TABLE_WORDS / 4;
#pragma unroll 1
  for (u32 i = threadIdx.x; i < COMPACT_WORDS / 4; i += BLOCK) {
    const uint4 from_a = __ldg(a + i), from_b = __ldg(b + i);
    reinterpret_cast<uint4 *>(table)[i] = second ? from_b : from_a;
  }
#pragma unroll 1
  for (u32 i = threadIdx.x; i < COUNT_WORDS; i += BLOCK) counts[i] = 0;
  __syncthreads();
#else
  const u32 *table = p.tables + (second ? TABLE_WORDS : 0);
#endif

  [[maybe_unused]] u32 on_rank[WORDS] = {};
  u32 faults = 0;
#if STAGED
  // All lanes of a warp stay in the loop while its first token exists.
  for (u32 first = (blockIdx.x * BLOCK + (threadIdx.x & ~31u)) / LANES; first < p.tokens; first += stride)
#endif
  {
    const bool here = token < p.tokens;
#if STAGED
    Id ahead[PER_LANE];
    if (token + stride < p.tokens) load_ids(p.ids + (u64)(token + stride) * TOP_K + lane * PER_LANE, ahead);
#endif
    const bool counted = token < valid;
    u32 mask[WORDS] = {};
    [[maybe_unused]] u32 rank_of_id = 0;
    [[maybe_unused]] bool recorded = false;
    if (here) {
      u32 entry[PER_LANE];
      choose(table, ids, mix32(token + salt) & 0xFFFF0000u, entry);
      bool all_known = true;
#pragma unroll
      for (u32 i = 0; i < PER_LANE; i++) {
        const u32 slot = entry[i] & 0xFFFFu;
        const bool ok = known(ids[i]) && counted;
        all_known &= known(ids[i]);
#if STAGED
        atomicAdd(counts + (ok ? slot : COUNT_WORDS), 1u);
#else
        if (ok) atomicAdd(counts + slot, 1u);
#endif
        if constexpr (LAYOUT != 0) {
          const u32 rank = slot / SLOTS_PER_RANK, bit = ok ? 1u << (rank % 32) : 0u;
          recorded = ok, rank_of_id = rank;
#pragma unroll
          for (u32 w = 0; w < WORDS; w++) mask[w] |= WORDS == 1 || rank / 32 == w ? bit : 0u;
        }
        entry[i] = slot;
      }
      if (all_known) {
#pragma unroll
        for (u32 i = 0; i < PER_LANE; i++) ids[i] = entry[i];
      } else {
#pragma unroll
        for (u32 i = 0; i < PER_LANE; i++) {
          faults += !known(ids[i]) && ids[i] >= 0 && counted;
          ids[i] = known(ids[i]) ? (Id)entry[i] : ids[i];
        }
      }
      store_ids(p.physical + (u64)token * TOP_K + lane * PER_LANE, ids);
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
        const u32 key = recorded ? rank_of_id * 32 + lane_in_warp / LANES : 0x80000000u + lane_in_warp;
        const u32 same = __match_any_sync(FULL_WARP, key);
        if (recorded && (same & ((1u << lane_in_warp) - 1)) == 0) atomicAdd(counts + RANK_COUNTS_AT + rank_of_id, 1u);
      } else {
#pragma unroll
        for (u32 w = 0; w < WORDS; w++) on_rank[w] += __popc(transpose(lane == 0 ? mask[w] : 0u));
      }
    }
#if STAGED
#pragma unroll
    for (u32 i = 0; i < PER_LANE; i++) ids[i] = ahead[i];
    token += stride;
#endif
  }
  if (faults) atomicAdd(p.faults, faults);
  if constexpr (LAYOUT != 0 && !LANE_PER_ID) {
#pragma unroll
    for (u32 w = 0; w < WORDS; w++)
      if (on_rank[w]) atomicAdd(counts + RANK_COUNTS_AT + w * 32 + (threadIdx.x & 31), on_rank[w]);
  }
#if STAGED
  __syncthreads();
  // Two counters an atomic: a count never carries, it would take 2^32 ids in a step. (The bulk engine's reduction was
  // as fast, measured.)
#pragma unroll 1
  for (u32 i = threadIdx.x; i < COUNT_WORDS / 2; i += BLOCK) {
    const u64 pair = reinterpret_cast<const u64 *>(counts)[i];
    if (pair) atomicAdd(reinterpret_cast<u64 *>(p.counts) + i, pair);
  }
#endif
}
