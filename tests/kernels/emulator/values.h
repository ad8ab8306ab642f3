// The numbers that the bits of each element type stand for.
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

}  // namespace sparse24
