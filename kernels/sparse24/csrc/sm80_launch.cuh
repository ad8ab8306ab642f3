// Host side of the Ampere kernel: its tiles, and the launch of one type's instances.
#pragma once
#include "launch.h"
#include "sm80_device.h"
#include "sm80_gemm.cuh"

namespace sparse24 {

// A tile, a warp's part of it; of sparse and of dense weights the stages, and how many tiles share a
// multiprocessor of sm_80. `rate` is the expected speed per multiprocessor, of the first one's.
struct Sm80Tile {
  int rows, tokens, warp_rows, warp_tokens, sparse_stages, dense_stages, sparse_resident, dense_resident;
  float rate;
};

constexpr Sm80Tile kSm80Tiles[] = {
    {256, 128, 64, 64, 4, 3, 1, 1, 1.0f},
    {128, 128, 64, 32, 3, 3, 2, 1, 0.8f},   // also what fits into Ada's 99 KB
    {64, 32, 16, 32, 6, 6, 2, 2, 0.25f},   // few tokens: bound by reading the weight
};
constexpr int kSm80TileCount = sizeof(kSm80Tiles) / sizeof(kSm80Tiles[0]);

template <Type kType, bool kSparse, int i>
using Sm80ShapeOf = Sm80Shape<kType, kSparse, kSm80Tiles[i].rows, kSm80Tiles[i].tokens,
                              kSm80Tiles[i].warp_rows, kSm80Tiles[i].warp_tokens,
                              kSparse ? kSm80Tiles[i].sparse_stages : kSm80Tiles[i].dense_stages,
                              kSparse ? kSm80Tiles[i].sparse_resident : kSm80Tiles[i].dense_resident>;

// The tile with the least expected time among those that the device can take; -1 if there is none.
template <Type kType, bool kSparse>
int sm80_choose(const Gemm& gemm, const Sm80Device& device) {
  constexpr int kShared[] = {Sm80ShapeOf<kType, kSparse, 0>::kSharedBytes,
                             Sm80ShapeOf<kType, kSparse, 1>::kSharedBytes,
                             Sm80ShapeOf<kType, kSparse, 2>::kSharedBytes};
  static_assert(kSm80TileCount == 3, "one size for each tile");
  int best = -1;
  float best_time = 0;
  for (int i = 0; i < kSm80TileCount; ++i) {
    const Sm80Tile& tile = kSm80Tiles[i];
    const int64_t tiles =
        int64_t{ceil_div(gemm.out_features, tile.rows)} * ceil_div(gemm.tokens, tile.tokens);
    const int64_t each = (tiles + device.multiprocessors - 1) / device.multiprocessors;
    const float time = each * (tile.rows * tile.tokens / tile.rate);
    if (kShared[i] > device.shared_limit || !sm80_has<kType>(device.capability, tile.rows)) continue;
    if (best >= 0 && time >= best_time) continue;
    best = i;
    best_time = time;
  }
  return best;
}

template <class Shape>
const char* sm80_launch_shape(const Gemm& gemm) {
  const auto is_multiple = [](const void* base, int64_t pitch, int rows, int bytes) {
    return reinterpret_cast<uintptr_t>(base) % bytes == 0 && (rows <= 1 || pitch % bytes == 0);
  };
  Sm80Arguments a;
  a.x = static_cast<const uint8_t*>(gemm.x);
  a.x_pitch = gemm.x_pitch;
  a.weight = static_cast<const uint8_t*>(gemm.weight);
  a.epilogue = Epilogue(gemm);
  a.tokens = gemm.tokens;
  a.features = gemm.out_features;
  a.in_bytes = gemm.in_features * Shape::kSize;
  a.row_blocks = ceil_div(gemm.out_features, kBlockRows);
  a.k_blocks = ceil_div(gemm.in_features, block_k(Shape::kSize));
  a.tiles_m = ceil_div(gemm.out_features, Shape::kRows);
  a.tiles_n = ceil_div(gemm.tokens, Shape::kTokens);
  a.x_is_aligned = is_multiple(gemm.x, gemm.x_pitch, gemm.tokens, 16);
  const int four = 4 * size_of(gemm.out_type);
  a.out_is_aligned = is_multiple(gemm.out, gemm.out_pitch, gemm.tokens, four) &&
                     is_multiple(gemm.residual, gemm.residual_pitch, gemm.tokens, four);
  return launch<sm80_gemm_kernel<Shape>>(int64_t{a.tiles_m} * a.tiles_n, Shape::kThreads,
                                         Shape::kSharedBytes, gemm.stream, a);
}

template <Type kType, bool kSparse>
const char* sm80_launch(const Gemm& gemm, const Sm80Device& device) {
  switch (sm80_choose<kType, kSparse>(gemm, device)) {
    case 0: return sm80_launch_shape<Sm80ShapeOf<kType, kSparse, 0>>(gemm);
    case 1: return sm80_launch_shape<Sm80ShapeOf<kType, kSparse, 1>>(gemm);
    case 2: return sm80_launch_shape<Sm80ShapeOf<kType, kSparse, 2>>(gemm);
    default:
      return "this device has too little shared memory for the sm_80 kernel";
  }
}

}  // namespace sparse24
