// The Ampere kernel's arguments, and what a tile of it amounts to.
#pragma once
#include "epilogue.cuh"
#include "layout.h"

namespace sparse24 {

struct Sm80Arguments {
  const uint8_t* x;
  int64_t x_pitch;
  const uint8_t* weight;
  Epilogue epilogue;
  int tokens, features, in_bytes;
  int row_blocks, k_blocks, tiles_m, tiles_n;
  bool x_is_aligned;    // every row of x starts at a multiple of 16 bytes
  bool out_is_aligned;  // four features of out, and of the residual, are one aligned access
};

template <Type kTypeOf, bool kSparseOf, int kRowsOf, int kTokensOf, int kWarpRowsOf, int kWarpTokensOf,
          int kStagesOf, int kResidentOf>
struct Sm80Shape {
  static constexpr Type kType = kTypeOf;
  static constexpr bool kSparse = kSparseOf;
  static constexpr int kRows = kRowsOf, kTokens = kTokensOf;              // of a tile
  static constexpr int kWarpRows = kWarpRowsOf, kWarpTokens = kWarpTokensOf;  // of a warp's part
  static constexpr int kStages = kStagesOf;
  static constexpr int kResident = kResidentOf;  // tiles at once on a multiprocessor of sm_80
  static constexpr int kSize = size_of(kType);
  static constexpr int kWarpsM = kRows / kWarpRows;
  static constexpr int kThreads = 32 * kWarpsM * (kTokens / kWarpTokens);
  static constexpr int kBlockBytes = block_bytes(kSize, kSparse);
  static constexpr int kWeightBytes = kRows / kBlockRows * kBlockBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kBlockBytesOfK;
  static constexpr int kSumPitch = kRows + 4;  // words: eight features of four tokens, 32 banks
  static constexpr int kSumBytes = kTokens * kSumPitch * 4;
  static constexpr int kPipeBytes = kStages * kStageBytes;
  static constexpr int kSharedBytes = kPipeBytes > kSumBytes ? kPipeBytes : kSumBytes;
  static constexpr int kRowSteps = kWarpRows / 16, kTokenSteps = kWarpTokens / 8;
  static_assert(kBlockRows % kWarpRows == 0, "a warp's rows lie in one block");
  static_assert(kThreads % 8 == 0 && kTokens % (kThreads / 8) == 0, "threads share out x evenly");
  static_assert(kThreads % (kRows / 4) == 0, "a thread keeps its four features");
};

// Whether a tile of so many rows is built. Ada brought e4m3's mma; Hopper has it in wgmma alone, and
// ptxas expands it to fp16's, for which only the smallest tile has registers left.
template <Type kType>
SPARSE24_BOTH constexpr bool sm80_has(int capability, int rows) {
  return kType != Type::e4m3 || (capability >= 89 && (capability < 90 || rows <= 64));
}

}  // namespace sparse24
