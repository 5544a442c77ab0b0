// What the benchmarks measure the others against: a node that does nothing, a plain 16-byte copy, a plain 16-byte read.
#include "common.cuh"

struct PlainCopy {
  const uint4 *from;
  uint4 *to;
  u64 vectors;
};
static_assert(sizeof(PlainCopy) == 24, "the Rust side asserts the same");

extern "C" __global__ void empty() {}

extern "C" __global__ void plain_copy(const __grid_constant__ PlainCopy p) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < p.vectors; i += (u64)gridDim.x * blockDim.x)
    p.to[i] = __ldg(p.from + i);
}

// Reads everything; the sum is written, so that no load can be left out.
extern "C" __global__ void __launch_bounds__(512, 1) plain_read(const __grid_constant__ PlainCopy p) {
  u32 sum = 0;
  for (u64 first = (u64)blockIdx.x * 2048 + threadIdx.x; first < p.vectors; first += (u64)gridDim.x * 2048) {
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
      const u64 i = first + k * 512;
      const uint4 v = i < p.vectors ? __ldcs(p.from + i) : make_uint4(0, 0, 0, 0);
      sum += v.x ^ v.y ^ v.z ^ v.w;
    }
  }
  reinterpret_cast<u32 *>(p.to)[(u64)blockIdx.x * 512 + threadIdx.x] = sum;
}
