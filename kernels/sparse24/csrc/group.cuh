// A group of four columns: which two are kept, and the nibble that says so (layout.h), on its bits.
#pragma once
#include "gemm.h"

namespace sparse24 {

// The bits of four columns: of a 16-bit type all 64, of an 8-bit type the low 32.
template <Type kType>
struct Group {
  static constexpr int kBits = 8 * size_of(kType);
  static constexpr uint32_t kSign = kType == Type::s8 ? 0 : 1u << (kBits - 1);
  static constexpr uint32_t kElement = (1u << kBits) - 1;
  // the least magnitude that is no finite number
  static constexpr uint32_t kNotFinite = kType == Type::f16    ? 0x7c00
                                         : kType == Type::bf16 ? 0x7f80
                                         : kType == Type::e4m3 ? 0x7f
                                                               : 0x100;
  uint64_t bits;

  __device__ __forceinline__ uint32_t magnitude(int column) const {
    return static_cast<uint32_t>(bits >> kBits * column) & kElement & ~kSign;
  }
  // Bit i: column i is not zero.
  __device__ __forceinline__ int nonzero() const {
    int mask = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) mask |= (magnitude(i) != 0) << i;
    return mask;
  }
  __device__ __forceinline__ bool is_finite() const {
    bool finite = true;
#pragma unroll
    for (int i = 0; i < 4; ++i) finite &= magnitude(i) < kNotFinite;
    return finite;
  }
  // second << 2 | first of the columns kept, by `nonzero()`; of more than two the first two.
  __device__ __forceinline__ static uint32_t nibble(int nonzero) {
    return 0x498e'4dcc'498e'4dc4ull >> 4 * nonzero & 15;
  }
  // The two columns of a nibble, the first one low; a zero loses its sign.
  __device__ __forceinline__ uint32_t kept(uint32_t nibble) const {
    const uint32_t first = nibble & 3, second = nibble >> 2;
    const uint32_t low = magnitude(first) == 0 ? 0 : bits >> kBits * first & kElement;
    const uint32_t high = magnitude(second) == 0 ? 0 : bits >> kBits * second & kElement;
    return low | high << kBits;
  }
  __device__ __forceinline__ static Group of(uint32_t kept, uint32_t nibble) {
    const uint64_t low = kept & kElement, high = kept >> kBits & kElement;
    return {low << kBits * (nibble & 3) | high << kBits * (nibble >> 2)};
  }
};

}  // namespace sparse24
