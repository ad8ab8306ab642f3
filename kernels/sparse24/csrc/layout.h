// The packed weight, version 1: the one description; ../layout.py is its plain-Python twin.
//
// A weight [out, in] is cut into blocks of 64 rows x 128 bytes of dense K (64 columns of a 16-bit
// type, 128 of an 8-bit type), padded with zeros. Blocks lie as [k_block][row_block], so the rows
// of one tile are one contiguous piece per k block. A sparse block is its values, then metadata:
//
//   values    64 rows x 64 bytes: the two kept of each group of four columns, in order of column.
//             The 16-byte chunk c of row r lies at chunk c ^ (r >> 1 & 3): SWIZZLE_64B of the copy
//             engine, so the tensor cores read it as it is copied.
//   metadata  per thread t = 32 * warp + 4 * g + c of a warpgroup (g 0..7, c 0..3), in nibbles of
//             second << 2 | first of a group's two kept columns, the lowest nibble first:
//             16-bit: one word. Low half: row 16 * warp + g, high half: that row + 8; dense
//             columns 32 * (c >> 1) + 16 * (c & 1) and 15 on.
//             8-bit: two words, s = 0, 1: row 16 * warp + g + 8 * (c & 1), dense columns
//             64 * s + 32 * (c >> 1) and 31 on.
//
// A group with fewer than two non-zeros keeps explicit zeros: a lone element at column 3 goes with
// column 0, a lone element elsewhere with column 3, an empty group keeps columns 0 and 1 (nibble 4).
// -0.0 counts as zero. A dense block (for honest comparison) is 64 rows x 128 bytes, chunk c of
// row r at c ^ (r & 7): SWIZZLE_128B.
#pragma once

#if defined(__CUDACC__)
#define SPARSE24_BOTH __host__ __device__
#else
#define SPARSE24_BOTH
#endif

namespace sparse24 {

constexpr int kLayoutVersion = 1;
constexpr int kBlockRows = 64;
constexpr int kBlockBytesOfK = 128;  // dense bytes along K
constexpr int kValueBytes = 64 * 64;

// Elements of dense K in a block, of a type of `size` bytes.
SPARSE24_BOTH constexpr int block_k(int size) { return kBlockBytesOfK / size; }
SPARSE24_BOTH constexpr int metadata_bytes(int size) { return size == 2 ? 512 : 1024; }
SPARSE24_BOTH constexpr int block_bytes(int size, bool sparse) {
  return sparse ? kValueBytes + metadata_bytes(size) : kBlockRows * kBlockBytesOfK;
}
SPARSE24_BOTH constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

}  // namespace sparse24
