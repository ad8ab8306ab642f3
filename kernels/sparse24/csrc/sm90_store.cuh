// A finished tile on its way out: transposed into shared memory, then stored.
#pragma once
#include "ptx.h"
#include "sm90_shape.cuh"

namespace sparse24 {

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

// Scale and bias of the features g and g + 8 of each of a thread's row steps.
template <int kRowSteps>
struct Affine {
  float scale[kRowSteps][2], bias[kRowSteps][2];

  __device__ __forceinline__ Affine(const Epilogue& epilogue, int feature, int features) {
#pragma unroll
    for (int i = 0; i < 2 * kRowSteps; ++i) {
      const int at = feature + 64 * (i / 2) + 8 * (i % 2);
      scale[i / 2][i % 2] = at < features ? epilogue.scale_of(at) : 0.0f;
      bias[i / 2][i % 2] = at < features ? epilogue.bias_of(at) : 0.0f;
    }
  }
};

// One chunk (kChunk tokens x 64 features) to its place in a slab, where its residual lies.
template <class Shape, int kOutSize, class Sum>
__device__ __forceinline__ void sm90_stage(const Sum* sums, const Epilogue& epilogue, uint32_t slab, int token,
                                           const float (&scale)[2], const float (&bias)[2], int warp,
                                           int lane) {
  constexpr int kValues = Shape::kChunk / 2;  // of every 8 tokens: feature g twice, g + 8 twice
  constexpr int kWords = kValues * kOutSize / 4;
  constexpr int kStep = kOutSize == 2 ? 4 : 2;  // words of 16 tokens
  uint32_t at[kWords / kStep], words[kWords];
#pragma unroll
  for (int t = 0; t < kWords / kStep; ++t) {
    const int matrix = lane >> 3;
    const int row = token + 16 * t + 8 * (kOutSize == 2 ? matrix >> 1 : matrix & 1) + (lane & 7);
    at[t] = slab + staging_offset<kOutSize>(row, kOutSize == 2 ? 2 * warp + (matrix & 1) : warp);
  }
  float values[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    values[i] = fmaf(static_cast<float>(sums[i]), scale[i >> 1 & 1], bias[i >> 1 & 1]);
  }
  if (epilogue.has_residual()) {
#pragma unroll
    for (int t = 0; t < kWords / kStep; ++t) {
      uint32_t loaded[kStep];
      ldmatrix_trans(at[t], loaded);
#pragma unroll
      for (int i = 0; i < kStep; ++i) {
        words[kStep * t + i] = kOutSize == 2 ? loaded[i] : from_pairs(loaded[i], lane);
      }
    }
    epilogue.template add_residual<kOutSize>(values, words);
  }
  epilogue.finish(values);
  epilogue.template pack<kOutSize>(values, words);
#pragma unroll
  for (int t = 0; t < kWords / kStep; ++t) {
    uint32_t stored[kStep];
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      stored[i] = kOutSize == 2 ? words[kStep * t + i] : to_pairs(words[kStep * t + i], lane);
    }
    stmatrix_trans(at[t], stored);
  }
}

// A finished warpgroup's tile through its staging buffer; the stores run on under the next tile.
template <class Shape, int kOutSize, class Sum>
__device__ __forceinline__ void sm90_store_tile(const Sum (&sums)[Shape::kRowSteps][Shape::kTokens / 2],
                                                const Affine<Shape::kRowSteps>& affine,
                                                const CUtensorMap& out_map, const Epilogue& epilogue,
                                                uint32_t staging, int feature, int token, int warpgroup,
                                                int thread) {
#pragma unroll
  for (int i = 0; i < Shape::kRowSteps; ++i) {
#pragma unroll
    for (int t = 0; t < Shape::kTokens; t += Shape::kChunk) {
      sm90_stage<Shape, kOutSize>(sums[i] + t / 2, epilogue, staging + i * Shape::kSlabBytes, t,
                                  affine.scale[i], affine.bias[i], thread / 32, thread % 32);
    }
  }
  fence_proxy_async();
  named_barrier(1 + warpgroup, 128);
  if (thread == 0) {
#pragma unroll
    for (int i = 0; i < Shape::kRowSteps; ++i) {
      store_tensor_2d(&out_map, staging + i * Shape::kSlabBytes, feature + 64 * i, token);
    }
    bulk_commit_group();
  }
}

// Waits until the tile before has left the staging buffer, then has this tile's residual copied in.
template <class Shape>
__device__ __forceinline__ void sm90_load_residual(const CUtensorMap& residual_map, const Epilogue& epilogue,
                                                   uint32_t staging, uint32_t barrier, int feature,
                                                   int token) {
  bulk_wait_group_read<0>();
  mbarrier_arrive_expect_tx(barrier, Shape::kRowSteps * Shape::kTokens * 64 * epilogue.out_size());
#pragma unroll
  for (int i = 0; i < Shape::kRowSteps; ++i) {
    copy_tensor_2d(staging + i * Shape::kSlabBytes, &residual_map, feature + 64 * i, token, barrier);
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

}  // namespace sparse24
