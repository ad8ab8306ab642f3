// What bits stand for: the numbers of each element type, and the metadata of a sparse product.
#pragma once
#include <cmath>
#include <cstring>

#include "gemm.h"

namespace sparse24 {

inline double decoded(int bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int whole = exponent == 0 ? mantissa : mantissa | 1 << mantissa_bits;
  const double value = std::ldexp(whole, (exponent == 0 ? 1 : exponent) - bias - mantissa_bits);
  return bits >> (exponent_bits + mantissa_bits) & 1 ? -value : value;
}

// The element at `byte` of a word.
template <Type kType>
double value_at(const uint32_t* word, int byte) {
  const uint32_t bits = *word >> 8 * byte;
  switch (kType) {
    case Type::f16: return (bits & 0x7c00) == 0x7c00 ? NAN : decoded(bits & 0xffff, 5, 10);
    case Type::bf16: return (bits & 0x7f80) == 0x7f80 ? NAN : decoded(bits & 0xffff, 8, 7);
    case Type::e4m3: return (bits & 0x7f) == 0x7f ? NAN : decoded(bits & 0xff, 4, 3);
    default: return static_cast<int8_t>(bits);
  }
}

// A group's nibble of metadata (second << 2 | first of its two kept columns), as mma.sp and wgmma.sp
// of 32 stored bytes have it: `word(lane)` is that of the four lanes that hold row `half` * 8 + their own.
// 16 bits: the selected pair of lanes, a half word for each half. 8 bits: all four, bit 0 of the
// lane is the half, bit 1 that of K.
template <class Word>
uint32_t nibble_of(Word word, int size, int selector, int half, int group) {
  if (size == 2) return word(2 * selector + group / 4) >> (half * 16 + group % 4 * 4) & 15;
  return word(half + 2 * (group / 8)) >> group % 8 * 4 & 15;
}

}  // namespace sparse24
