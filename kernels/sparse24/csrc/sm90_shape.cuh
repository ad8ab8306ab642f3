// What the roles of the Hopper kernel share: the problem, a tile's sizes, the walk over the tiles.
#pragma once
#include "config.h"
#include "epilogue.cuh"
#include "layout.h"

namespace sparse24 {

struct Sm90Arguments {
  const uint8_t* weight;
  Epilogue epilogue;
  int tokens, features;
  int row_blocks, k_blocks;
  int tiles_m, tiles_n;  // in clusters
  int cluster_m, cluster_n, raster;
  bool stores_by_copy_engine;
  bool is_convolution;
  Convolution convolution;
  int group_features, group_channels, channel_blocks;
};

template <Type kTypeOf, bool kSparseOf, int kTileOf>
struct Sm90Shape {
  static constexpr Tile kTile = kTiles[kTileOf];
  static constexpr Type kType = kTypeOf;
  static constexpr bool kSparse = kSparseOf;
  static constexpr int kWarpgroups = kTile.warpgroups;  // that multiply
  static constexpr int kRowSteps = kTile.row_steps;     // of 64 features, per warpgroup
  static constexpr int kTokens = kTile.tokens;
  static constexpr bool kByTurns = kTile.by_turns;            // each warpgroup its own tiles
  static constexpr int kTogether = kByTurns ? 1 : kWarpgroups;  // warpgroups at one tile
  static constexpr int kSize = size_of(kType);
  static constexpr int kRows = kTile.rows();
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kBlockBytes = block_bytes(kSize, kSparse);
  static constexpr int kWeightBytes = kBlockBytes * (kRows / 64);
  static constexpr int kTokenBytes = kTokens * kBlockBytesOfK;
  static constexpr int kWeightRowBytes = kSparse ? 64 : 128;
  static constexpr int kSteps = kWeightRowBytes / 32;  // wgmmas along one block of K
  static constexpr bool kIsWide = kTile.is_wide();
  // A warpgroup's tile leaves in parts of 64 features x kPart tokens, of at most 2 bytes each, by
  // turns through kBuffers buffers, so that the copy engine reads one while the next is written.
  static constexpr int kPart = kTokens < 64 ? kTokens : 64;
  static constexpr int kParts = kRowSteps * kTokens / kPart;
  static constexpr int kPartBytes = kPart * 128;
  static constexpr int kBuffers = 3;
  static constexpr int kStagingBytes = kBuffers * kPartBytes;  // per warpgroup
  static constexpr int kBudget = 227 * 1024 - 2048 - kWarpgroups * kStagingBytes;
  static constexpr int kFit = kBudget / (kWeightBytes + kTokenBytes);
  static constexpr int kStages = kFit > 8 ? 8 : kFit;
  static constexpr int kSharedBytes =
      2048 + kStages * (kWeightBytes + kTokenBytes) + kWarpgroups * kStagingBytes;
  static_assert(kStages >= 2, "a tile must leave room for two stages");
  static_assert(kTokens % kPart == 0 && kPart % 16 == 0, "stmatrix stores 16 tokens at once");
};

// Walks the tiles of the persistent cluster: `raster` tiles along features before the next tokens.
struct Schedule {
  int at, step, tiles_m, tiles_n, raster;

  __device__ __forceinline__ explicit Schedule(const Sm90Arguments& arguments)
      : tiles_m(arguments.tiles_m), tiles_n(arguments.tiles_n), raster(arguments.raster) {
    const int blocks = arguments.cluster_m * arguments.cluster_n;
    at = blockIdx.x / blocks;
    step = gridDim.x / blocks;
  }
  __device__ __forceinline__ bool done() const { return at >= tiles_m * tiles_n; }
  __device__ __forceinline__ void next() { at += step; }
  __device__ __forceinline__ void place(int& m, int& n) const {
    const int group = at / (raster * tiles_n);
    const int first = group * raster;
    const int width = min(raster, tiles_m - first);
    const int within = at - group * raster * tiles_n;
    m = first + within % width;
    n = within / width;
  }
};

template <int kStages>
struct Ring {  // where in the ring of stages a role is
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
  __device__ __forceinline__ void skip(int count) {
    stage += count;
    phase ^= stage / kStages & 1;
    stage %= kStages;
  }
};

}  // namespace sparse24
