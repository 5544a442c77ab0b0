// What every kernel shares: fixed-width names and the two mixers of src/mix.rs, bit for bit.
// The files are compiled by NVRTC without any header, so nothing is included anywhere.
#pragma once

using u8 = unsigned char;
using u32 = unsigned int;
using i32 = int;
using u64 = unsigned long long;
using i64 = long long;

constexpr u32 FULL_WARP = 0xFFFFFFFFu;

__device__ __forceinline__ u32 mix32(u32 word) {
  word = (word ^ (word >> 16)) * 0x85EBCA6Bu;
  word = (word ^ (word >> 13)) * 0xC2B2AE35u;
  return word ^ (word >> 16);
}

__device__ __forceinline__ u64 mix64(u64 word) {
  word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9ull;
  word = (word ^ (word >> 27)) * 0x94D049BB133111EBull;
  return word ^ (word >> 31);
}
