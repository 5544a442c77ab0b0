// fingerprint: the 64-bit hash of src/fingerprint.rs over many slots, at memory speed.
//
// The terms are summed, so blocks take any part of a slot and meet in one atomic each. `sums` starts at zero.
#include "common.cuh"

constexpr u64 GAMMA = 0x9E3779B97F4A7C15ull;
constexpr u32 VECTORS = 4; // 16-byte loads in flight per thread

struct FingerprintSlots {
  const u8 *const *slots; // [slots], 16-byte aligned
  u64 *sums;              // [slots]
  u64 bytes;              // of each slot
};
static_assert(sizeof(FingerprintSlots) == 24, "the Rust side asserts the same");

__device__ __forceinline__ u64 term(u64 word, u64 place) { return mix64(word + (place + 1) * GAMMA); }

extern "C" __global__ void __launch_bounds__(BLOCK, 1) fingerprint(const __grid_constant__ FingerprintSlots p) {
  const u8 *slot = p.slots[blockIdx.y];
  const ulonglong2 *vectors = reinterpret_cast<const ulonglong2 *>(slot);
  const u64 count = p.bytes / 16;
  u64 sum = 0;
  // A block takes neighbouring vectors at a time, which the memory serves faster than distant ones.
  for (u64 chunk = blockIdx.x; chunk * (BLOCK * VECTORS) < count; chunk += gridDim.x) {
    const u64 first = chunk * (BLOCK * VECTORS) + threadIdx.x;
    if ((chunk + 1) * (BLOCK * VECTORS) <= count) {
      ulonglong2 v[VECTORS];
#pragma unroll
      for (u32 k = 0; k < VECTORS; k++) v[k] = __ldcs(vectors + first + k * BLOCK);
#pragma unroll
      for (u32 k = 0; k < VECTORS; k++)
        sum += term(v[k].x, 2 * (first + k * BLOCK)) + term(v[k].y, 2 * (first + k * BLOCK) + 1);
    } else {
      for (u64 i = first; i < count; i += BLOCK) sum += term(vectors[i].x, 2 * i) + term(vectors[i].y, 2 * i + 1);
    }
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    sum += mix64(p.bytes);
    for (u64 at = count * 16; at < p.bytes; at += 8) {
      u64 word = 0;
      for (u64 k = 0; k < 8 && at + k < p.bytes; k++) word |= (u64)slot[at + k] << (8 * k);
      sum += term(word, at / 8);
    }
  }
#pragma unroll
  for (u32 s = 16; s; s >>= 1) sum += __shfl_down_sync(FULL_WARP, sum, s);
  __shared__ u64 of_warp[BLOCK / 32];
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (u32 w = 1; w < BLOCK / 32; w++) sum += of_warp[w];
    atomicAdd(p.sums + blockIdx.y, sum);
  }
}
