// How a thread of a packing kernel gets at its part of the dense weight.
#pragma once
#include <cuda_runtime_api.h>
#include <cstdint>

namespace sparse24 {

struct PackArguments {
  uint8_t* weight;
  int64_t pitch;
  int rows, columns;
  uint8_t* packed;
  unsigned long long* bad;
  int k_blocks, row_blocks;
  bool is_aligned;  // every row of the weight starts at a multiple of 16 bytes
};

// The i-th (of two) piece of thread t: 32 dense bytes of one row, as layout.h's metadata has it.
struct Piece {
  int row, quarter;
};
template <int kSize>
__device__ __forceinline__ Piece piece_of(int thread, int i) {
  const int row = thread / 32 * 16 + thread / 4 % 8, c = thread % 4;
  if (kSize == 2) return {row + 8 * i, c};
  return {row + 8 * (c & 1), 2 * i + (c >> 1)};
}

// Words of a row from byte `at` on, zeros beyond its end; and back.
template <int kSize, int kWords>
__device__ __forceinline__ void load_bytes(const PackArguments& a, int row, int64_t at,
                                           uint32_t (&words)[kWords]) {
  const uint8_t* from = a.weight + row * a.pitch + at;
  const int64_t left = row < a.rows ? int64_t{a.columns} * kSize - at : 0;
  if (a.is_aligned && left >= 4 * kWords) {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const uint4 chunk = reinterpret_cast<const uint4*>(from)[i / 4];
      words[i] = chunk.x, words[i + 1] = chunk.y, words[i + 2] = chunk.z, words[i + 3] = chunk.w;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = 0;
#pragma unroll
  for (int i = 0; i < 4 * kWords; i += kSize) {
    if (i >= left) continue;
    const uint32_t element =
        kSize == 2 ? *reinterpret_cast<const uint16_t*>(from + i) : static_cast<uint32_t>(from[i]);
    words[i / 4] |= element << 8 * (i % 4);
  }
}
template <int kSize, int kWords>
__device__ __forceinline__ void store_bytes(const PackArguments& a, int row, int64_t at,
                                            const uint32_t (&words)[kWords]) {
  uint8_t* to = a.weight + row * a.pitch + at;
  const int64_t left = row < a.rows ? int64_t{a.columns} * kSize - at : 0;
  if (a.is_aligned && left >= 4 * kWords) {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      reinterpret_cast<uint4*>(to)[i / 4] = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 4 * kWords; i += kSize) {
    if (i >= left) continue;
    const uint32_t element = words[i / 4] >> 8 * (i % 4);
    if (kSize == 2) *reinterpret_cast<uint16_t*>(to + i) = static_cast<uint16_t>(element);
    if (kSize == 1) to[i] = static_cast<uint8_t>(element);
  }
}

}  // namespace sparse24
