// sm_90a: out[tokens, features] = epilogue(weight . x), weight 2:4 or dense in layout.h's blocks,
// x [tokens, in] with contiguous columns; fp32 sums, of int8 int32; K in ascending order, unsplit.
//
// One warp copies (producer), one or two warpgroups multiply; persistent blocks, in clusters that
// share x along features and the weight along tokens. The tensor cores hold features as rows, so
// stmatrix transposes a finished tile into staging buffers, which the copy engine stores while the
// next tile is multiplied.
#pragma once
#include "config.h"
#include "epilogue.cuh"
#include "layout.h"
#include "ptx.h"
#include "wgmma.h"

namespace sparse24 {

struct Sm90Arguments {
  const uint8_t* weight;
  Epilogue epilogue;
  int tokens, features;
  int row_blocks, k_blocks;
  int tiles_m, tiles_n;  // in clusters
  int cluster_m, cluster_n, raster;
  bool stores_by_copy_engine;
};

template <Type kTypeOf, bool kSparseOf, int kWarpgroupsOf, int kRowStepsOf, int kTokensOf>
struct Sm90Shape {
  static constexpr Type kType = kTypeOf;
  static constexpr bool kSparse = kSparseOf;
  static constexpr int kWarpgroups = kWarpgroupsOf;  // that multiply
  static constexpr int kRowSteps = kRowStepsOf;      // of 64 features, per warpgroup
  static constexpr int kTokens = kTokensOf;
  static constexpr int kSize = size_of(kType);
  static constexpr int kRows = 64 * kWarpgroups * kRowSteps;
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kBlockBytes = block_bytes(kSize, kSparse);
  static constexpr int kWeightBytes = kBlockBytes * (kRows / 64);
  static constexpr int kTokenBytes = kTokens * kBlockBytesOfK;
  static constexpr int kWeightRowBytes = kSparse ? 64 : 128;
  static constexpr int kSteps = kWeightRowBytes / 32;  // wgmmas along one block of K
  // staging: 64 features x kChunk tokens of at most 2 bytes
  static constexpr int kChunk = kTokens < 64 ? kTokens : 64;
  static constexpr int kChunks = kTokens / kChunk;
  static constexpr int kStagingBytes = kChunk * 128;
  static constexpr int kStaging = 2;  // buffers per warpgroup
  static constexpr int kBudget = 227 * 1024 - 2048 - kWarpgroups * kStaging * kStagingBytes;
  static constexpr int kFit = kBudget / (kWeightBytes + kTokenBytes);
  static constexpr int kStages = kFit > 8 ? 8 : kFit;
  static constexpr int kSharedBytes =
      2048 + kStages * (kWeightBytes + kTokenBytes) + kWarpgroups * kStaging * kStagingBytes;
  static_assert(kStages >= 2, "a tile must leave room for two stages");
  static_assert(kTokens % kChunk == 0 && kChunk % 16 == 0, "stmatrix stores 16 tokens at once");
};

// Walks the tiles of the persistent cluster: `raster` tiles along features before the next tokens.
struct Schedule {
  int at, step, tiles_m, tiles_n, raster;

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
};

template <class Shape>
__device__ __forceinline__ void sm90_produce(const CUtensorMap& x_map, const Sm90Arguments& arguments,
                                             Schedule schedule, uint32_t x_at, uint32_t weight_at,
                                             uint32_t full, uint32_t empty, int rank_m, int rank_n) {
  const int cluster_m = arguments.cluster_m, cluster_n = arguments.cluster_n;
  uint16_t x_mask = 0, weight_mask = 0;  // the blocks that get what this one loads
  for (int i = 0; i < cluster_m; ++i) x_mask |= 1 << (i + cluster_m * rank_n);
  for (int i = 0; i < cluster_n; ++i) weight_mask |= 1 << (rank_m + cluster_m * i);
  const int x_rows = Shape::kTokens / cluster_m;
  constexpr int kBlocks = Shape::kRows / 64;
  Ring<Shape::kStages> ring;
  for (; !schedule.done(); schedule.next()) {
    int m, n;
    schedule.place(m, n);
    const int first_block = (m * cluster_m + rank_m) * kBlocks;
    const int first_token = (n * cluster_n + rank_n) * Shape::kTokens + rank_m * x_rows;
    for (int k = 0; k < arguments.k_blocks; ++k, ring.next()) {
      mbarrier_wait(empty + 8 * ring.stage, ring.phase ^ 1);
      const uint32_t barrier = full + 8 * ring.stage;
      mbarrier_arrive_expect_tx(barrier, Shape::kTokenBytes + Shape::kWeightBytes);
      const uint32_t x_to = x_at + ring.stage * Shape::kTokenBytes + rank_m * x_rows * kBlockBytesOfK;
      const int column = k * block_k(Shape::kSize);
      if (cluster_m == 1) {
        copy_tensor_2d(x_to, &x_map, column, first_token, barrier);
      } else {
        copy_tensor_2d_multicast(x_to, &x_map, column, first_token, barrier, x_mask);
      }
      const uint32_t weight_to = weight_at + ring.stage * Shape::kWeightBytes;
      const uint8_t* from = arguments.weight + static_cast<int64_t>(k) * arguments.row_blocks * Shape::kBlockBytes;
      if (cluster_n == 1 && first_block + kBlocks <= arguments.row_blocks) {
        copy_bulk(weight_to, from + static_cast<int64_t>(first_block) * Shape::kBlockBytes,
                  Shape::kWeightBytes, barrier);
        continue;
      }
      for (int i = 0; i < kBlocks; ++i) {
        // Beyond the last block the last is read again: its products are never stored.
        const int block = min(first_block + i, arguments.row_blocks - 1);
        const uint8_t* block_from = from + static_cast<int64_t>(block) * Shape::kBlockBytes;
        const uint32_t block_to = weight_to + i * Shape::kBlockBytes;
        if (cluster_n == 1) {
          copy_bulk(block_to, block_from, Shape::kBlockBytes, barrier);
        } else if (i % cluster_n == rank_n) {
          copy_bulk_multicast(block_to, block_from, Shape::kBlockBytes, barrier, weight_mask);
        }
      }
    }
  }
}

// The products of one stage: kSteps x kRowSteps wgmmas.
template <class Shape, class Sum>
__device__ __forceinline__ void sm90_multiply(Sum (&sums)[Shape::kRowSteps][Shape::kTokens / 2],
                                              uint32_t x_at, uint32_t weight_at, int thread,
                                              bool is_first) {
  using Mma = Wgmma<Shape::kType, Shape::kSparse, Shape::kTokens>;
  uint2 metadata[Shape::kRowSteps];
  if constexpr (Shape::kSparse) {
#pragma unroll
    for (int i = 0; i < Shape::kRowSteps; ++i) {
      const uint32_t words = weight_at + i * Shape::kBlockBytes + kValueBytes;
      if constexpr (Shape::kSize == 2) {
        metadata[i].x = load_shared(words + 4 * thread);
      } else {
        metadata[i] = load_shared_2(words + 8 * thread);
      }
    }
  }
  const uint64_t x_descriptor = wgmma_descriptor<128>(x_at);
  const uint64_t weight_descriptor = wgmma_descriptor<Shape::kWeightRowBytes>(weight_at);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < Shape::kSteps; ++step) {
    const uint64_t x = x_descriptor + (step * (kBlockBytesOfK / Shape::kSteps) >> 4);
#pragma unroll
    for (int i = 0; i < Shape::kRowSteps; ++i) {
      const uint64_t weight = weight_descriptor + (i * Shape::kBlockBytes + step * 32 >> 4);
      const int accumulate = !is_first || step > 0;
      if constexpr (!Shape::kSparse) {
        Mma::issue(sums[i], weight, x, accumulate);
      } else if constexpr (Shape::kSize == 2) {
        if (step == 0) {
          Mma::template issue<0>(sums[i], weight, x, metadata[i].x, accumulate);
        } else {
          Mma::template issue<1>(sums[i], weight, x, metadata[i].x, accumulate);
        }
      } else {
        Mma::template issue<0>(sums[i], weight, x, step == 0 ? metadata[i].x : metadata[i].y,
                               accumulate);
      }
    }
  }
  wgmma_commit_group();
}

// Where in a staging buffer a thread's stmatrix row lies: token-major rows, swizzled as its map is.
template <int kOutSize>
__device__ __forceinline__ uint32_t staging_offset(int token, int chunk) {
  return kOutSize == 2 ? token * 128 + ((chunk ^ (token & 7)) << 4)
                       : token * 64 + ((chunk ^ (token >> 1 & 3)) << 4);
}

// Bytes of features g and g + 8, two tokens each, to pairs of neighboring features, and back.
__device__ __forceinline__ uint32_t to_pairs(uint32_t word, int lane) {
  const int pair = lane >> 2, column = lane & 3;
  const uint32_t even = __shfl_sync(0xffffffff, word, (pair & 3) * 8 + column);
  const uint32_t odd = __shfl_sync(0xffffffff, word, (pair & 3) * 8 + 4 + column);
  return __byte_perm(even, odd, pair < 4 ? 0x5140 : 0x7362);
}
__device__ __forceinline__ uint32_t from_pairs(uint32_t word, int lane) {
  const int row = lane >> 2, column = lane & 3;
  const uint32_t low = __shfl_sync(0xffffffff, word, (row >> 1) * 4 + column);
  const uint32_t high = __shfl_sync(0xffffffff, word, (4 + (row >> 1)) * 4 + column);
  return __byte_perm(low, high, row & 1 ? 0x7531 : 0x6420);
}

// One chunk (64 features x kChunk tokens) into its staging buffer, from which it adds the residual.
template <class Shape, int kOutSize, class Sum>
__device__ __forceinline__ void sm90_stage(const Sum* sums, const Epilogue& epilogue, uint32_t buffer,
                                           const float (&scale)[2], const float (&bias)[2], int warp,
                                           int lane) {
#pragma unroll
  for (int t = 0; t < Shape::kChunk; t += 16) {
    float values[2][4];  // [8 tokens][feature g: 2 tokens, feature g + 8: 2 tokens]
    const Sum* sum = sums + t / 2;
    const int row = lane & 7, matrix = lane >> 3;
    uint32_t at;
    if constexpr (kOutSize == 2) {
      at = buffer + staging_offset<2>(t + 8 * (matrix >> 1) + row, 2 * warp + (matrix & 1));
    } else {
      at = buffer + staging_offset<1>(t + 8 * (matrix & 1) + row, warp);
    }
    float residual[2][4] = {};
    if (epilogue.has_residual()) {
      if constexpr (kOutSize == 2) {
        uint32_t words[4];
        ldmatrix_x4_trans(at, words);
#pragma unroll
        for (int i = 0; i < 4; ++i) epilogue.unpack_pair(words[i], &residual[i >> 1][2 * (i & 1)]);
      } else {
        uint32_t words[2];
        ldmatrix_x2_trans(at, words);
#pragma unroll
        for (int i = 0; i < 2; ++i) epilogue.unpack_bytes(from_pairs(words[i], lane), residual[i]);
      }
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      values[j >> 2][j & 3] = epilogue.linear(static_cast<float>(sum[j]), scale[j >> 1 & 1],
                                              bias[j >> 1 & 1], residual[j >> 2][j & 3]);
    }
    activate(values[0], epilogue.activation);
    activate(values[1], epilogue.activation);
    if constexpr (kOutSize == 2) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = epilogue.pack_pair(&values[i >> 1][2 * (i & 1)]);
      stmatrix_x4_trans(at, words[0], words[1], words[2], words[3]);
    } else {
      uint32_t words[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) words[i] = to_pairs(epilogue.pack_bytes(values[i]), lane);
      stmatrix_x2_trans(at, words[0], words[1]);
    }
  }
}

// A finished warpgroup's tile through its staging buffers; the stores run on under the next tile.
template <class Shape, int kOutSize, class Sum>
__device__ __forceinline__ void sm90_store_tile(const Sum (&sums)[Shape::kRowSteps][Shape::kTokens / 2],
                                                const CUtensorMap& out_map,
                                                const CUtensorMap& residual_map,
                                                const Sm90Arguments& arguments, uint32_t staging,
                                                uint32_t residual_barrier, uint32_t& residual_phase,
                                                int feature, int token, int warpgroup, int thread) {
  const Epilogue& epilogue = arguments.epilogue;
  const int warp = thread / 32, lane = thread % 32;
#pragma unroll
  for (int i = 0; i < Shape::kRowSteps; ++i) {
    float scale[2], bias[2];
    const int row = feature + 64 * i + 16 * warp + lane / 4;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const bool is_inside = row + 8 * j < arguments.features;
      scale[j] = is_inside ? epilogue.scale_of(row + 8 * j) : 0.0f;
      bias[j] = is_inside ? epilogue.bias_of(row + 8 * j) : 0.0f;
    }
#pragma unroll
    for (int c = 0; c < Shape::kChunks; ++c) {
      const int slot = (i * Shape::kChunks + c) % Shape::kStaging;
      const uint32_t buffer = staging + slot * Shape::kStagingBytes;
      const int chunk_token = token + c * Shape::kChunk;
      if (thread == 0) {
        bulk_wait_group_read<Shape::kStaging - 1>();
        if (epilogue.has_residual()) {
          mbarrier_arrive_expect_tx(residual_barrier, Shape::kChunk * 64 * kOutSize);
          copy_tensor_2d(buffer, &residual_map, feature + 64 * i, chunk_token, residual_barrier);
        }
      }
      named_barrier(1 + warpgroup, 128);
      if (epilogue.has_residual()) {
        mbarrier_wait(residual_barrier, residual_phase);
        residual_phase ^= 1;
      }
      sm90_stage<Shape, kOutSize>(sums[i] + c * Shape::kChunk / 2, epilogue, buffer, scale, bias,
                                  warp, lane);
      fence_proxy_async();
      named_barrier(1 + warpgroup, 128);
      if (thread == 0) {
        store_tensor_2d(&out_map, buffer, feature + 64 * i, chunk_token);
        bulk_commit_group();
      }
    }
  }
}

// Out types of 4 bytes, and rows the copy engine cannot address: bare sums through the staging
// buffer, then each thread finishes and stores neighboring features.
template <class Shape, class Sum>
__device__ __forceinline__ void sm90_store_plain(const Sum (&sums)[Shape::kRowSteps][Shape::kTokens / 2],
                                                 const Sm90Arguments& arguments, Sum* buffer, int feature,
                                                 int token, int warpgroup, int thread) {
  constexpr int kPart = Shape::kChunk / 2;  // tokens, of 64 sums of 4 bytes
  const Epilogue& epilogue = arguments.epilogue;
  // Swizzled, so that a warp's writes of 4 token pairs x 8 features meet 32 banks.
  const auto at = [&](int t, int f) -> Sum& { return buffer[t * 64 + (f ^ (t >> 1 & 3) << 3)]; };
#pragma unroll
  for (int i = 0; i < Shape::kRowSteps; ++i) {
#pragma unroll
    for (int part = 0; part < Shape::kTokens; part += kPart) {
      named_barrier(1 + warpgroup, 128);
#pragma unroll
      for (int j = 0; j < kPart / 2; ++j) {  // 4 sums for every 8 tokens
        at(8 * (j >> 2) + 2 * (thread & 3) + (j & 1),
           16 * (thread / 32) + (thread % 32) / 4 + 8 * (j >> 1 & 1)) = sums[i][part / 2 + j];
      }
      named_barrier(1 + warpgroup, 128);
#pragma unroll 1
      for (int index = thread; index < kPart * 64; index += 128) {
        const int t = index / 64, row = feature + 64 * i + index % 64;
        if (token + part + t >= arguments.tokens || row >= arguments.features) continue;
        epilogue.store(at(t, index % 64), epilogue.scale_of(row), epilogue.bias_of(row),
                       token + part + t, row);
      }
    }
  }
}

template <class Shape>
__device__ __forceinline__ void sm90_consume(const CUtensorMap& out_map, const CUtensorMap& residual_map,
                                             const Sm90Arguments& arguments, Schedule schedule,
                                             uint32_t x_at, uint32_t weight_at, uint32_t staging,
                                             void* plain, uint32_t full, uint32_t empty,
                                             uint32_t residual_barrier, int rank_m, int rank_n) {
  using Sum = typename Accumulator<Shape::kType>::type;
  const int warpgroup = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, lane = threadIdx.x % 32;
  const int cluster_m = arguments.cluster_m, cluster_n = arguments.cluster_n;
  // Lane i of every warp tells the i-th block that loads for this one that a stage is free.
  const bool is_teller = lane < cluster_m + cluster_n - 1;
  const int other = lane - cluster_m;
  const uint32_t told = lane < cluster_m
                            ? lane + cluster_m * rank_n
                            : rank_m + cluster_m * (other < rank_n ? other : other + 1);
  const auto release = [&](int stage) {
    if (is_teller) mbarrier_arrive_cluster(empty + 8 * stage, told);
  };
  const int row = warpgroup * 64 * Shape::kRowSteps;
  const uint32_t my_weight = weight_at + warpgroup * Shape::kRowSteps * Shape::kBlockBytes;
  uint32_t residual_phase = 0;
  Ring<Shape::kStages> ring;
  for (; !schedule.done(); schedule.next()) {
    Sum sums[Shape::kRowSteps][Shape::kTokens / 2];
    int previous = 0;
    for (int k = 0; k < arguments.k_blocks; ++k, ring.next()) {
      mbarrier_wait(full + 8 * ring.stage, ring.phase);
      sm90_multiply<Shape>(sums, x_at + ring.stage * Shape::kTokenBytes,
                           my_weight + ring.stage * Shape::kWeightBytes, thread, k == 0);
      wgmma_wait_group<1>();
      if (k > 0) release(previous);
      previous = ring.stage;
    }
    wgmma_wait_group<0>();
    release(previous);
    int m, n;
    schedule.place(m, n);
    const int feature = (m * cluster_m + rank_m) * Shape::kRows + row;
    const int token = (n * cluster_n + rank_n) * Shape::kTokens;
    if (!arguments.stores_by_copy_engine) {
      sm90_store_plain<Shape>(sums, arguments, static_cast<Sum*>(plain), feature, token, warpgroup,
                              thread);
    } else if (arguments.epilogue.out_size() == 2) {
      sm90_store_tile<Shape, 2>(sums, out_map, residual_map, arguments, staging, residual_barrier,
                                residual_phase, feature, token, warpgroup, thread);
    } else {
      if constexpr (Shape::kSize == 1) {
        sm90_store_tile<Shape, 1>(sums, out_map, residual_map, arguments, staging, residual_barrier,
                                  residual_phase, feature, token, warpgroup, thread);
      }
    }
  }
  if (thread == 0) bulk_wait_group();
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    sm90_gemm_kernel(const __grid_constant__ CUtensorMap x_map,
                     const __grid_constant__ CUtensorMap out_map,
                     const __grid_constant__ CUtensorMap residual_map,
                     const __grid_constant__ Sm90Arguments arguments) {
  extern __shared__ uint8_t shared[];
  const uint32_t base = (shared_address(shared) + 1023) & ~1023u;
  const uint32_t x_at = base;
  const uint32_t weight_at = x_at + Shape::kStages * Shape::kTokenBytes;
  const uint32_t staging_at = (weight_at + Shape::kStages * Shape::kWeightBytes + 1023) & ~1023u;
  const uint32_t full =
      staging_at + Shape::kWarpgroups * Shape::kStaging * Shape::kStagingBytes;
  const uint32_t empty = full + 8 * Shape::kStages;
  const uint32_t residual_barriers = empty + 8 * Shape::kStages;

  const int rank = cluster_rank();
  const int rank_m = rank % arguments.cluster_m, rank_n = rank / arguments.cluster_m;
  const int blocks = arguments.cluster_m * arguments.cluster_n;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::kStages; ++i) {
      mbarrier_init(full + 8 * i, 1);
      mbarrier_init(empty + 8 * i,
                    4 * Shape::kWarpgroups * (arguments.cluster_m + arguments.cluster_n - 1));
    }
    for (int i = 0; i < Shape::kWarpgroups; ++i) mbarrier_init(residual_barriers + 8 * i, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  if (blocks > 1) cluster_sync();

  const Schedule schedule{static_cast<int>(blockIdx.x) / blocks, static_cast<int>(gridDim.x) / blocks,
                          arguments.tiles_m, arguments.tiles_n, arguments.raster};
  const int role = threadIdx.x / 128;
  if (role == 0) {
    setmaxnreg_decrease<40>();
    if (threadIdx.x / 32 == 0 && elect_one()) {
      sm90_produce<Shape>(x_map, arguments, schedule, x_at, weight_at, full, empty, rank_m, rank_n);
    }
    __syncwarp();
  } else {
    setmaxnreg_increase<232>();
    const int warpgroup = role - 1;
    const uint32_t staging = staging_at + warpgroup * Shape::kStaging * Shape::kStagingBytes;
    sm90_consume<Shape>(out_map, residual_map, arguments, schedule, x_at, weight_at,
                        staging, shared + (staging - shared_address(shared)), full, empty,
                        residual_barriers + 8 * warpgroup, rank_m, rank_n);
  }
  // A block must outlive what others of its cluster still copy into it or tell it.
  if (blocks > 1) cluster_sync();
}

}  // namespace sparse24
