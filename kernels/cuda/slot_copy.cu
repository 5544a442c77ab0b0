// slot_copy: many slots copied in one launch, each in chunks that the blocks share.
//
// Streaming both ways: weights are far larger than the L2, so neither side is worth keeping there. Compiled in: BLOCK
// threads, VECTORS of 16 bytes that a thread has in flight.
#include "common.cuh"


struct Segment {
  const u8 *source;
  u8 *destination;
  u64 bytes;
  u64 first_chunk;
};

struct SlotCopy {
  const Segment *__restrict__ segments; // [segments], by first_chunk
  u64 chunks;
  u32 segments_count;
  u32 reserved;
};
static_assert(sizeof(Segment) == 32 && sizeof(SlotCopy) == 24, "the Rust side asserts the same");

constexpr u64 CHUNK = (u64)BLOCK * VECTORS * 16;

__device__ __forceinline__ uint4 load_streaming(const uint4 *from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

extern "C" __global__ void __launch_bounds__(BLOCK, 1) slot_copy(const __grid_constant__ SlotCopy p) {
  u32 at = 0;
  for (u64 chunk = blockIdx.x; chunk < p.chunks; chunk += gridDim.x) {
    // Chunks only rise, so the segment is sought from the last one on.
    u32 beyond = p.segments_count;
    if (at + 1 < beyond && __ldg(&p.segments[at + 1].first_chunk) <= chunk) {
      while (beyond - at > 1) {
        const u32 middle = (at + beyond) / 2;
        if (__ldg(&p.segments[middle].first_chunk) <= chunk) at = middle;
        else beyond = middle;
      }
    }
    const Segment &s = p.segments[at];
    const u64 begin = (chunk - s.first_chunk) * CHUNK;
    const u64 left = s.bytes - begin;
    const uint4 *from = reinterpret_cast<const uint4 *>(s.source + begin);
    uint4 *to = reinterpret_cast<uint4 *>(s.destination + begin);
    if (left >= CHUNK) {
      uint4 v[VECTORS];
#pragma unroll
      for (u32 i = 0; i < VECTORS; i++) v[i] = load_streaming(from + i * BLOCK + threadIdx.x);
#pragma unroll
      for (u32 i = 0; i < VECTORS; i++) __stcs(to + i * BLOCK + threadIdx.x, v[i]);
    } else {
      for (u64 i = threadIdx.x; i < left / 16; i += BLOCK) to[i] = from[i];
      const u64 tail = left & ~15ull;
      if (threadIdx.x < left - tail)
        s.destination[begin + tail + threadIdx.x] = s.source[begin + tail + threadIdx.x];
    }
  }
}
