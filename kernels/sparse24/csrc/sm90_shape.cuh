// What the roles of the Hopper kernel share: the problem, a tile's sizes, the walk over the tiles.
#pragma once
#include "config.h"
#include "epilogue.cuh"
#include "layout.h"
#include "ptx.h"

namespace sparse24 {

// Division of what is below 2^31 by a number that the host knows: a product and a shift.
struct Divider {
  uint32_t factor = 0, shift = 0;  // factor 0: by 1

  Divider() = default;
  explicit Divider(uint32_t divisor) {
    if (divisor == 1) return;
    while (1u << shift < divisor) ++shift;  // factor = 2^(31 + shift) / divisor, rounded up
    factor = static_cast<uint32_t>(((uint64_t{1} << (31 + shift)) + divisor - 1) / divisor);
    --shift;
  }
  __device__ __forceinline__ int divide(int number) const {
    const uint64_t product = static_cast<uint64_t>(static_cast<uint32_t>(number)) * factor;
    return factor == 0 ? number : static_cast<int>(static_cast<uint32_t>(product >> 32) >> shift);
  }
};

struct Sm90Arguments {
  const uint8_t* weight;
  Epilogue epilogue;
  int tokens, features;
  int row_blocks, k_blocks;
  int tiles, tiles_of_strip;  // in clusters; a strip is `width` tiles along features by all tokens
  int last_strip, width, last_width;
  Divider by_strip, by_width, by_last_width;
  int cluster_m, cluster_n;
  bool stores_by_copy_engine;
  bool is_convolution;
  Convolution convolution;
  int group_features, group_channels, channel_blocks;
  Window window;
  Divider by_image;
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
  static constexpr bool kIsWindow = kTile.is_window;
  static constexpr int kTaps = kIsWindow ? 9 : 1;  // blocks of K of a stage: places of a 3 x 3 kernel
  static constexpr int kWeightBytes = kTaps * kBlockBytes * (kRows / 64);
  static constexpr int kRoom = kIsWindow ? kWindowRoom : kTokens;  // rows of x in a stage
  static constexpr int kTokenBytes = kRoom * kBlockBytesOfK;
  static constexpr int kWeightRowBytes = kSparse ? 64 : 128;
  static constexpr int kSteps = kWeightRowBytes / 32;  // wgmmas along one block of K
  static constexpr bool kIsWide = kTile.is_wide();
  static constexpr bool kShares = kTile.shares();
  // Registers of a thread after the producer has given away what it does not need. The pool is what
  // the block was started with; who asks for more than is in it waits for ever.
  static constexpr int kProducerRegisters = kIsWide ? 24 : 56;
  static constexpr int kConsumerRegisters = kIsWide ? 240 : 224;
  static constexpr int kPooledRegisters = 65536 / kThreads / 8 * 8 * (kWarpgroups + 1);
  static_assert(kProducerRegisters + kWarpgroups * kConsumerRegisters <= kPooledRegisters,
                "the warpgroups that multiply would wait for registers for ever");
  // A warpgroup's tile leaves in parts of 64 features x kPart tokens, of at most 2 bytes each, by
  // turns through kBuffers buffers, so that the copy engine reads one while the next is written; a
  // window's whole, as its rows have no multiple of tokens.
  static constexpr int kPart = kIsWindow || kTokens < 64 ? kTokens : 64;
  static constexpr int kParts = kRowSteps * kTokens / kPart;
  static constexpr int kPartBytes = kPart * 128;
  static constexpr int kBuffers = kIsWindow ? 1 : 3;
  static constexpr int kStagingBytes = kBuffers * kPartBytes;  // per warpgroup
  static constexpr int kBudget = 227 * 1024 - 2048 - kWarpgroups * kStagingBytes;
  // The weight of a window is no part of a stage: it is kept while tiles of its features follow, the
  // next one beside it where that leaves room.
  static constexpr int kKept = !kIsWindow ? 0 : kBudget >= 2 * (kWeightBytes + kTokenBytes) ? 2 : 1;
  static constexpr int kFit = kIsWindow ? (kBudget - kKept * kWeightBytes) / kTokenBytes
                                        : kBudget / (kWeightBytes + kTokenBytes);
  static constexpr int kStages = kFit > 8 ? 8 : kFit;
  static constexpr int kWeights = kIsWindow ? kKept : kStages;
  static constexpr int kSharedBytes =
      2048 + kStages * kTokenBytes + kWeights * kWeightBytes + kWarpgroups * kStagingBytes;
  static_assert(kStages >= 2, "a tile must leave room for two stages");
  static_assert(kTokens % kPart == 0 && kPart % 16 == 0, "stmatrix stores 16 tokens at once");
};

// Where things lie in the shared memory of a block: one register for all of them.
template <class Shape>
struct Memory {
  uint32_t base;

  static constexpr int kWeight = Shape::kStages * Shape::kTokenBytes;
  static constexpr int kStaging = (kWeight + Shape::kWeights * Shape::kWeightBytes + 1023) / 1024 * 1024;
  static constexpr int kFull = kStaging + Shape::kWarpgroups * Shape::kStagingBytes;
  static constexpr int kEmpty = kFull + 8 * Shape::kStages;
  static constexpr int kTurns = kEmpty + 8 * Shape::kStages;
  static constexpr int kResidual = kTurns + 8 * Shape::kWarpgroups;
  static constexpr int kKept = kResidual + 8 * Shape::kWarpgroups * Shape::kBuffers;
  static_assert(kKept + 16 * Shape::kKept + 1023 <= Shape::kSharedBytes,
                "all of it must fit, behind what aligning the first byte takes");

  __device__ __forceinline__ uint32_t x(int stage) const { return base + stage * Shape::kTokenBytes; }
  __device__ __forceinline__ uint32_t weight(int stage) const {  // of a window: one of those kept
    return base + kWeight + stage * Shape::kWeightBytes;
  }
  __device__ __forceinline__ uint32_t staging(int warpgroup) const {
    return base + kStaging + warpgroup * Shape::kStagingBytes;
  }
  // mbarriers: a stage is full, or empty; a warpgroup's turn; the residual is in its first buffer; a
  // kept weight is there, or free
  __device__ __forceinline__ uint32_t full(int stage) const { return base + kFull + 8 * stage; }
  __device__ __forceinline__ uint32_t empty(int stage) const { return base + kEmpty + 8 * stage; }
  __device__ __forceinline__ uint32_t turn(int warpgroup) const { return base + kTurns + 8 * warpgroup; }
  __device__ __forceinline__ uint32_t residual(int warpgroup) const {
    return base + kResidual + 8 * warpgroup * Shape::kBuffers;
  }
  __device__ __forceinline__ uint32_t weight_full(int kept) const { return base + kKept + 16 * kept; }
  __device__ __forceinline__ uint32_t weight_empty(int kept) const { return base + kKept + 16 * kept + 8; }
};

// The blocks that share copies, along features and along tokens, and which of them this is.
template <bool kShares>
struct Cluster {
  int m = 1, n = 1, rank_m = 0, rank_n = 0;

  __device__ __forceinline__ explicit Cluster(const Sm90Arguments& arguments) {
    if constexpr (kShares) {
      m = arguments.cluster_m;
      n = arguments.cluster_n;
      rank_m = cluster_rank() % m;
      rank_n = cluster_rank() / m;
    }
  }
};

// Walks the tiles of the persistent cluster: those of a strip along features before the next tokens.
struct Schedule {
  int at, step;

  __device__ __forceinline__ explicit Schedule(int blocks)
      : at(blockIdx.x / blocks), step(gridDim.x / blocks) {}
  __device__ __forceinline__ bool done(const Sm90Arguments& arguments) const { return at >= arguments.tiles; }
  __device__ __forceinline__ void next() { at += step; }
  __device__ __forceinline__ void place(const Sm90Arguments& arguments, int& m, int& n) const {
    const int strip = arguments.by_strip.divide(at);
    const int within = at - strip * arguments.tiles_of_strip;
    const bool is_last = strip == arguments.last_strip;
    const Divider by_width = is_last ? arguments.by_last_width : arguments.by_width;
    n = by_width.divide(within);
    m = strip * arguments.width + within - n * (is_last ? arguments.last_width : arguments.width);
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

// The weight of a window that a role is at, as it meets the tiles, each in its order.
template <class Shape>
struct Kept {
  Ring<Shape::kKept> ring = {};
  int features = -1;  // the tile of features that it is of

  __device__ __forceinline__ bool is_at(int m) const { return features == m; }
  __device__ __forceinline__ void turn_to(int m) {
    if (features >= 0) ring.next();
    features = m;
  }
};

}  // namespace sparse24
