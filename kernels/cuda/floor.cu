// What the benchmarks measure the others against: a node that does nothing, and a plain 16-byte copy.
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
