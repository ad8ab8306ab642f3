// Where a 16-byte chunk of a row lies, so that eight rows' equal chunks never share a bank.
#pragma once
#include "layout.h"

namespace sparse24 {

// Bytes from the start of a block with rows of 64 bytes (layout.h: sparse values) or of 128 bytes
// (dense blocks, and a tile of x). Its exclusive or repeats after eight rows.
template <int kRowBytes>
SPARSE24_BOTH constexpr int swizzled(int row, int chunk) {
  static_assert(kRowBytes == 64 || kRowBytes == 128, "the copy engine has no such swizzle here");
  return row * kRowBytes + ((chunk ^ (kRowBytes == 64 ? row >> 1 & 3 : row & 7)) << 4);
}

}  // namespace sparse24
