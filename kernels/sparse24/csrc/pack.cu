// pack.h: a dense [rows, columns] weight into layout.h's blocks and back, one thread block to a block.
//
// Bound by memory: a 16-bit weight of n bytes moves n + 0.5625 n. Of a sparse block each thread takes
// two pieces of 32 dense bytes, those whose metadata layout.h gives it, so that every thread has four
// 16-byte loads in flight, keeps two 16-byte chunks and writes whole words of metadata.
#include "group.cuh"
#include "launch.h"
#include "pack.h"
#include "pieces.cuh"
#include "swizzle.h"

namespace sparse24 {
namespace {

constexpr int kThreads = 128;
constexpr int kDenseChunks = kBlockRows * kBlockBytesOfK / 16 / kThreads;  // of a thread

// Remembers the lowest bad group among the whole grid's; every thread of a warp calls it.
__device__ __forceinline__ void report(const PackArguments& a, unsigned long long bad) {
  constexpr unsigned kAll = 0xffffffff;
  if (!__any_sync(kAll, bad != ~0ull)) return;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const unsigned long long other = __shfl_xor_sync(kAll, bad, distance);
    bad = other < bad ? other : bad;
  }
  if (threadIdx.x % 32 == 0) atomicMin(a.bad, bad);
}

// The index of the group of a byte of a row.
template <Type kType>
__device__ __forceinline__ unsigned long long index_of(const PackArguments& a, int row, int64_t at) {
  return static_cast<unsigned long long>(row) * ceil_div(a.columns, 4) + at / (4 * size_of(kType));
}

template <Type kType>
__global__ void __launch_bounds__(kThreads) pack_sparse_kernel(const PackArguments a) {
  constexpr int kSize = size_of(kType), kGroups = 8 / kSize;  // of a piece
  const int thread = threadIdx.x;
  const int k_block = blockIdx.x % a.k_blocks, row_block = blockIdx.x / a.k_blocks;
  uint8_t* block = a.packed + (int64_t{k_block} * a.row_blocks + row_block) * block_bytes(kSize, true);
  uint32_t words[2][8];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Piece piece = piece_of<kSize>(thread, i);
    load_bytes<kSize>(a, row_block * kBlockRows + piece.row,
                      int64_t{k_block} * kBlockBytesOfK + 32 * piece.quarter, words[i]);
  }
  uint32_t nibbles[2] = {}, bad = 0;  // a bit for each group, the lowest first
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Piece piece = piece_of<kSize>(thread, i);
    uint32_t values[4] = {};
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const Group<kType> group = {words[i][j * kSize], words[i][j * kSize + kSize - 1]};
      const int nonzero = group.nonzero();
      const uint32_t nibble = Group<kType>::nibble(nonzero);
      nibbles[i] |= nibble << 4 * j;
      values[j * kSize / 2] |= group.kept(nibble) << (kSize == 1 ? j % 2 * 16 : 0);
      bad |= static_cast<uint32_t>(group.is_bad(nonzero)) << (i * kGroups + j);
    }
    *reinterpret_cast<uint4*>(block + swizzled<64>(piece.row, piece.quarter)) =
        make_uint4(values[0], values[1], values[2], values[3]);
  }
  uint8_t* metadata = block + kValueBytes;
  if (kSize == 2) reinterpret_cast<uint32_t*>(metadata)[thread] = nibbles[0] | nibbles[1] << 16;
  if (kSize == 1) reinterpret_cast<uint2*>(metadata)[thread] = make_uint2(nibbles[0], nibbles[1]);
  unsigned long long lowest = ~0ull;
  if (bad != 0) {
    const int first = __ffs(bad) - 1;
    const Piece piece = piece_of<kSize>(thread, first / kGroups);
    lowest = index_of<kType>(a, row_block * kBlockRows + piece.row,
                             int64_t{k_block} * kBlockBytesOfK + 32 * piece.quarter +
                                 first % kGroups * 4 * kSize);
  }
  report(a, lowest);
}

template <Type kType>
__global__ void __launch_bounds__(kThreads) pack_dense_kernel(const PackArguments a) {
  constexpr int kSize = size_of(kType);
  const int k_block = blockIdx.x % a.k_blocks, row_block = blockIdx.x / a.k_blocks;
  uint8_t* block = a.packed + (int64_t{k_block} * a.row_blocks + row_block) * block_bytes(kSize, false);
  uint32_t words[kDenseChunks][4];
  const int chunk = threadIdx.x % 8, first_row = threadIdx.x / 8;
  const int64_t at = int64_t{k_block} * kBlockBytesOfK + 16 * chunk;
#pragma unroll
  for (int i = 0; i < kDenseChunks; ++i) {
    load_bytes<kSize>(a, row_block * kBlockRows + first_row + kThreads / 8 * i, at, words[i]);
  }
  uint32_t bad = 0;  // a bit for each word, the lowest first
#pragma unroll
  for (int i = 0; i < kDenseChunks; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      bad |= static_cast<uint32_t>(Group<kType>::not_finite(words[i][j]) != 0) << (4 * i + j);
    }
    *reinterpret_cast<uint4*>(block + swizzled<128>(first_row + kThreads / 8 * i, chunk)) =
        make_uint4(words[i][0], words[i][1], words[i][2], words[i][3]);
  }
  unsigned long long lowest = ~0ull;
  if (bad != 0) {
    const int first = __ffs(bad) - 1;
    lowest = index_of<kType>(a, row_block * kBlockRows + first_row + kThreads / 8 * (first / 4),
                             at + first % 4 * 4);
  }
  report(a, lowest);
}

// Unpacking moves bits alone: one instance serves all types of a size.
template <Type kType>
__global__ void __launch_bounds__(kThreads) unpack_sparse_kernel(const PackArguments a) {
  constexpr int kSize = size_of(kType), kGroups = 8 / kSize;
  const int thread = threadIdx.x;
  const int k_block = blockIdx.x % a.k_blocks, row_block = blockIdx.x / a.k_blocks;
  const uint8_t* block =
      a.packed + (int64_t{k_block} * a.row_blocks + row_block) * block_bytes(kSize, true);
  const uint8_t* metadata = block + kValueBytes;
  uint32_t nibbles[2];
  if (kSize == 2) {
    const uint32_t word = reinterpret_cast<const uint32_t*>(metadata)[thread];
    nibbles[0] = word & 0xffff, nibbles[1] = word >> 16;
  } else {
    const uint2 pair = reinterpret_cast<const uint2*>(metadata)[thread];
    nibbles[0] = pair.x, nibbles[1] = pair.y;
  }
  uint4 values[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Piece piece = piece_of<kSize>(thread, i);
    values[i] = *reinterpret_cast<const uint4*>(block + swizzled<64>(piece.row, piece.quarter));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Piece piece = piece_of<kSize>(thread, i);
    const uint32_t kept[4] = {values[i].x, values[i].y, values[i].z, values[i].w};
    uint32_t words[8];
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const uint32_t two = kSize == 2 ? kept[j * kSize / 2] : kept[j * kSize / 2] >> j % 2 * 16;
      const Group<kType> group = Group<kType>::of(two, nibbles[i] >> 4 * j & 15);
      words[j * kSize] = group.low;
      if (kSize == 2) words[j * kSize + kSize - 1] = group.high;
    }
    store_bytes<kSize>(a, row_block * kBlockRows + piece.row,
                       int64_t{k_block} * kBlockBytesOfK + 32 * piece.quarter, words);
  }
}

template <Type kType>
__global__ void __launch_bounds__(kThreads) unpack_dense_kernel(const PackArguments a) {
  constexpr int kSize = size_of(kType);
  const int k_block = blockIdx.x % a.k_blocks, row_block = blockIdx.x / a.k_blocks;
  const uint8_t* block =
      a.packed + (int64_t{k_block} * a.row_blocks + row_block) * block_bytes(kSize, false);
  const int chunk = threadIdx.x % 8, first_row = threadIdx.x / 8;
  uint4 chunks[kDenseChunks];
#pragma unroll
  for (int i = 0; i < kDenseChunks; ++i) {
    chunks[i] = *reinterpret_cast<const uint4*>(
        block + swizzled<128>(first_row + kThreads / 8 * i, chunk));
  }
#pragma unroll
  for (int i = 0; i < kDenseChunks; ++i) {
    const uint32_t words[4] = {chunks[i].x, chunks[i].y, chunks[i].z, chunks[i].w};
    store_bytes<kSize>(a, row_block * kBlockRows + first_row + kThreads / 8 * i,
                       int64_t{k_block} * kBlockBytesOfK + 16 * chunk, words);
  }
}

const char* refuse(const void* weight, int64_t pitch, int rows, int columns, Type type,
                   const void* packed) {
  if (type > Type::e4m3) return "only f16, bf16, s8 and e4m3 weights can be packed";
  if (rows < 0 || columns < 0) return "a weight has no negative rows or columns";
  const int size = size_of(type);
  if (rows > 1 && pitch < int64_t{columns} * size) return "the weight's rows overlap: its pitch is too small";
  if (reinterpret_cast<uintptr_t>(packed) % 16 != 0) {
    return "the packed weight must start at a multiple of 16 bytes";
  }
  if (reinterpret_cast<uintptr_t>(weight) % size != 0 || (rows > 1 && pitch % size != 0)) {
    return "the weight's rows must start at a multiple of its element's size";
  }
  return nullptr;
}

PackArguments arguments_of(void* weight, int64_t pitch, int rows, int columns, Type type, void* packed,
                           int64_t* bad) {
  const bool is_aligned =
      reinterpret_cast<uintptr_t>(weight) % 16 == 0 && (rows <= 1 || pitch % 16 == 0);
  return {static_cast<uint8_t*>(weight),
          pitch,
          rows,
          columns,
          static_cast<uint8_t*>(packed),
          reinterpret_cast<unsigned long long*>(bad),
          ceil_div(columns, block_k(size_of(type))),
          ceil_div(rows, kBlockRows),
          is_aligned};
}

template <auto kernel>
const char* launch_blocks(const PackArguments& a, cudaStream_t stream) {
  return launch<kernel>(int64_t{a.k_blocks} * a.row_blocks, kThreads, 0, stream, a);
}
template <Type kType>
const char* pack_as(const PackArguments& a, bool sparse, cudaStream_t stream) {
  return sparse ? launch_blocks<pack_sparse_kernel<kType>>(a, stream)
                : launch_blocks<pack_dense_kernel<kType>>(a, stream);
}
template <Type kType>
const char* unpack_as(const PackArguments& a, bool sparse, cudaStream_t stream) {
  return sparse ? launch_blocks<unpack_sparse_kernel<kType>>(a, stream)
                : launch_blocks<unpack_dense_kernel<kType>>(a, stream);
}

}  // namespace

const char* pack(const void* weight, int64_t pitch, int rows, int columns, Type type, bool sparse,
                 void* packed, int64_t* bad, cudaStream_t stream) {
  if (const char* wrong = refuse(weight, pitch, rows, columns, type, packed)) return wrong;
  const PackArguments a =
      arguments_of(const_cast<void*>(weight), pitch, rows, columns, type, packed, bad);
  switch (type) {
    case Type::f16: return pack_as<Type::f16>(a, sparse, stream);
    case Type::bf16: return pack_as<Type::bf16>(a, sparse, stream);
    case Type::s8: return pack_as<Type::s8>(a, sparse, stream);
    default: return pack_as<Type::e4m3>(a, sparse, stream);
  }
}

const char* unpack(const void* packed, int rows, int columns, Type type, bool sparse, void* weight,
                   int64_t pitch, cudaStream_t stream) {
  if (const char* wrong = refuse(weight, pitch, rows, columns, type, packed)) return wrong;
  const PackArguments a =
      arguments_of(weight, pitch, rows, columns, type, const_cast<void*>(packed), nullptr);
  return size_of(type) == 2 ? unpack_as<Type::f16>(a, sparse, stream)
                            : unpack_as<Type::s8>(a, sparse, stream);
}

}  // namespace sparse24
