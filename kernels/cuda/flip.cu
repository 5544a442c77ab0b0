// flip: at the step boundary, every layer takes the table buffer that is armed for it.
//
// `armed[layer]` is written by the host, whole words: `sequence << 1 | buffer`. The kernel may sit in a captured
// graph: each replay reads the words anew, and a word that was already taken changes nothing.
#include "common.cuh"

struct Flip {
  u32 *active;      // [layers], bit 0 is what map_record reads
  const u32 *armed; // [layers], may be mapped host memory
  u32 *taken;       // [layers], may be mapped host memory: the last word that took effect
  u32 layers;
  u32 reserved;
};
static_assert(sizeof(Flip) == 32, "the Rust side asserts the same");

extern "C" __global__ void flip(const __grid_constant__ Flip p) {
  const u32 layer = blockIdx.x * blockDim.x + threadIdx.x;
  if (layer >= p.layers) return;
  const u32 word = *static_cast<const volatile u32 *>(p.armed + layer);
  p.active[layer] = word & 1u;
  // Whoever sees the word taken must find the flip done.
  __threadfence_system();
  *static_cast<volatile u32 *>(p.taken + layer) = word;
}
