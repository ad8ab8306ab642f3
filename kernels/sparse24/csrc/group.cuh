// A group of four columns: which two are kept, and the nibble that says so (layout.h). All elements of
// a word are looked at together, since packing 8-bit types is nearly bound by instructions.
#pragma once
#include "gemm.h"

namespace sparse24 {

// The bits of four columns: of a 16-bit type in two words, of an 8-bit type in `low`.
template <Type kType>
struct Group {
  static constexpr int kBits = 8 * size_of(kType);
  static constexpr uint32_t kEach = kBits == 16 ? 0x00010001 : 0x01010101;  // one in each element
  static constexpr uint32_t kTop = kEach << (kBits - 1);                    // of each the top bit
  static constexpr uint32_t kElement = (1u << kBits) - 1;
  // the least magnitude that is no finite number
  static constexpr uint32_t kNotFinite = kType == Type::f16 ? 0x7c00 : kType == Type::bf16 ? 0x7f80 : 0x7f;
  uint32_t low, high;

  // The top bit of each element that is not zero. Sums stay inside their element.
  __device__ __forceinline__ static uint32_t nonzero(uint32_t word) {
    const uint32_t some = (word & ~kTop) + ~kTop;
    return (kType == Type::s8 ? some | word : some) & kTop;
  }
  // The top bit of each element that is NaN or infinite.
  __device__ __forceinline__ static uint32_t not_finite(uint32_t word) {
    if (kType == Type::s8) return 0;
    return ((word & ~kTop) + ((1u << (kBits - 1)) - kNotFinite) * kEach) & kTop;
  }
  // The same without the sign of zeros.
  __device__ __forceinline__ static uint32_t without_negative_zero(uint32_t word) {
    return kType == Type::s8 ? word : word & (nonzero(word) >> (kBits - 1)) * kElement;
  }

  // Bit i: column i is not zero.
  __device__ __forceinline__ int nonzero() const {
    if (kBits == 8) return (nonzero(low) >> 7) * 0x10204080u >> 28;
    const uint32_t pairs = nonzero(low) >> 15 | nonzero(high) >> 13;
    return (pairs | pairs >> 15) & 15;
  }
  // Whether the group cannot be packed: a value that is not finite, or more than two non-zeros.
  __device__ __forceinline__ bool is_bad(int nonzero) const {
    const uint32_t wrong = not_finite(low) | (kBits == 16 ? not_finite(high) : 0);
    return wrong != 0 || (0xe880 >> nonzero & 1) != 0;
  }
  // second << 2 | first of the columns kept, by `nonzero()`; of more than two the first two.
  __device__ __forceinline__ static uint32_t nibble(int nonzero) {
    return nonzero == 0 ? 4 : 0x498e4dccu >> 4 * (nonzero & 7) & 15;
  }
  // The two columns of a nibble, the first one low; a zero loses its sign.
  __device__ __forceinline__ uint32_t kept(uint32_t nibble) const {
    const uint32_t first = nibble & 3, second = nibble >> 2;
    if (kBits == 8) return __byte_perm(without_negative_zero(low), 0, first | second << 4) & 0xffff;
    return __byte_perm(without_negative_zero(low), without_negative_zero(high),
                       (first | second << 8) * 0x22 + 0x1010);
  }
  __device__ __forceinline__ static Group of(uint32_t kept, uint32_t nibble) {
    const uint64_t first = kept & kElement, second = kept >> kBits & kElement;
    const uint64_t bits = first << kBits * (nibble & 3) | second << kBits * (nibble >> 2);
    return {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)};
  }
};

}  // namespace sparse24
