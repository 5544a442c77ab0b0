// prefix: for every layer, the exclusive sums of its slot counts: where each slot's tokens begin.
//
// Kept out of map_record: finding the last block there costs microseconds with many blocks. One warp a layer.
#include "common.cuh"

struct Prefix {
  const u32 *counts; // [layers][stride], the slot counts first
  u32 *offsets;      // [layers][slots + 1]
  u32 layers, slots, stride, reserved;
};
static_assert(sizeof(Prefix) == 32, "the Rust side asserts the same");

extern "C" __global__ void prefix(const __grid_constant__ Prefix p) {
  const u32 layer = blockIdx.x, lane = threadIdx.x;
  const u32 *counts = p.counts + (u64)layer * p.stride;
  u32 *offsets = p.offsets + (u64)layer * (p.slots + 1);
  u32 before = 0;
  for (u32 first = 0; first < p.slots; first += 32) {
    const u32 own = first + lane < p.slots ? counts[first + lane] : 0;
    u32 sum = own;
#pragma unroll
    for (u32 s = 1; s < 32; s <<= 1) {
      const u32 left = __shfl_up_sync(FULL_WARP, sum, s);
      if (lane >= s) sum += left;
    }
    if (first + lane < p.slots) offsets[first + lane] = before + sum - own;
    before += __shfl_sync(FULL_WARP, sum, 31);
  }
  if (lane == 0) offsets[p.slots] = before;
}
