// sm_80: out[tokens, features] = epilogue(weight . x), weight 2:4 or dense in layout.h's blocks,
// x [tokens, in] with contiguous columns; fp32 sums, of int8 int32; K in ascending order, unsplit.
//
// A thread block multiplies one tile: cp.async brings a block of K per stage, ldmatrix takes weight
// rows (the mma's A, features) and token rows (B) from it. The finished sums are turned around through
// shared memory, so that neighboring threads have neighboring features of a token to store.
#pragma once
#include <type_traits>

#include "sm80_ptx.cuh"
#include "sm80_shape.cuh"
#include "swizzle.h"

namespace sparse24 {

template <Type kType>
struct Sum {
  using type = float;
};
template <>
struct Sum<Type::s8> {
  using type = int;
};

// Which tile: eight along features, then the next tokens, so that neighbors share both in L2.
__device__ __forceinline__ void sm80_place(const Sm80Arguments& a, int& m, int& n) {
  constexpr int kRaster = 8;
  const int at = blockIdx.x, group = at / (kRaster * a.tiles_n);
  const int left = a.tiles_m - group * kRaster, width = left < kRaster ? left : kRaster;
  const int inside = at - group * kRaster * a.tiles_n;
  m = group * kRaster + inside % width;
  n = inside / width;
}

// Block k of K, of the tile's weight rows and tokens, to a stage. Zeros beyond the edges.
template <class Shape>
__device__ __forceinline__ void sm80_load(const Sm80Arguments& a, uint8_t* stage, int row_block, int token,
                                          int k) {
  const int thread = threadIdx.x;
  const uint32_t to = to_shared(stage);
  const uint8_t* weight = a.weight + (int64_t{k} * a.row_blocks + row_block) * Shape::kBlockBytes;
  const int weight_bytes = (a.row_blocks - row_block) * Shape::kBlockBytes;
#pragma unroll
  for (int i = 0; i < Shape::kWeightBytes; i += 16 * Shape::kThreads) {
    const int at = i + 16 * thread;
    if (at < Shape::kWeightBytes) cp_async(to + at, weight + at, at < weight_bytes ? 16 : 0);
  }
  constexpr int kRowsAtOnce = Shape::kThreads / 8;
  const int chunk = thread % 8, row = thread / 8, at = k * kBlockBytesOfK + 16 * chunk;
  const int left = a.in_bytes - at, inside = left < 0 ? 0 : left > 16 ? 16 : left;
  const uint8_t* from = a.x + (token + row) * a.x_pitch + at;
  if (a.x_is_aligned) {
#pragma unroll
    for (int i = 0; i < Shape::kTokens; i += kRowsAtOnce) {
      const int bytes = token + row + i < a.tokens ? inside : 0;
      cp_async(to + Shape::kWeightBytes + swizzled<128>(row + i, chunk),
               bytes > 0 ? from + i * a.x_pitch : a.x, bytes);
    }
    return;
  }
  using Element = typename std::conditional<Shape::kSize == 2, uint16_t, uint8_t>::type;
#pragma unroll 1
  for (int i = 0; i < Shape::kTokens; i += kRowsAtOnce) {
    const int bytes = token + row + i < a.tokens ? inside : 0;
    Element* place =
        reinterpret_cast<Element*>(stage + Shape::kWeightBytes + swizzled<128>(row + i, chunk));
#pragma unroll 1
    for (int j = 0; j < 16 / Shape::kSize; ++j) {
      const bool exists = j * Shape::kSize < bytes;
      place[j] = exists ? reinterpret_cast<const Element*>(from + i * a.x_pitch)[j] : Element{0};
    }
  }
}

// Adds one block of K to a warp's sums.
template <class Shape, class SumType>
__device__ __forceinline__ void sm80_multiply(SumType (&sums)[Shape::kRowSteps][Shape::kTokenSteps][4],
                                              const uint8_t* stage, int warp_row, int warp_token) {
  constexpr Type kType = Shape::kType;
  const int lane = threadIdx.x % 32;
  const uint8_t* block = stage + warp_row / kBlockRows * Shape::kBlockBytes;
  const int row = warp_row % kBlockRows;  // in its block
  const uint32_t rows_at = to_shared(block), tokens_at = to_shared(stage + Shape::kWeightBytes);
  uint32_t metadata[Shape::kRowSteps][2];
  if constexpr (Shape::kSparse) {
#pragma unroll
    for (int m = 0; m < Shape::kRowSteps; ++m) {
      const int thread = (row + 16 * m) * 2 + lane;  // of the warpgroup in layout.h
      if constexpr (Shape::kSize == 2) {
        metadata[m][0] = metadata[m][1] = reinterpret_cast<const uint32_t*>(block + kValueBytes)[thread];
      } else {
        const uint2 words = reinterpret_cast<const uint2*>(block + kValueBytes)[thread];
        metadata[m][0] = words.x, metadata[m][1] = words.y;
      }
    }
  }
  const auto step = [&](auto half) {  // of 64 dense bytes
    constexpr int s = decltype(half)::value;
    uint32_t x[Shape::kTokenSteps][4];
#pragma unroll
    for (int n = 0; n < Shape::kTokenSteps; ++n) {
      ldmatrix_x4(x[n], tokens_at + swizzled<128>(warp_token + 8 * n + lane % 8, 4 * s + lane / 8));
    }
#pragma unroll
    for (int m = 0; m < Shape::kRowSteps; ++m) {
      const int weight_row = row + 16 * m + lane % 16;
      uint32_t weight[4];
      if constexpr (Shape::kSparse) {
        ldmatrix_x4(weight, rows_at + swizzled<64>(weight_row, 2 * s + lane / 16));
#pragma unroll
        for (int n = 0; n < Shape::kTokenSteps; ++n) {
          mma_sp<kType, s>(sums[m][n], weight, x[n], metadata[m][s]);
        }
      } else {
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          ldmatrix_x4(weight, rows_at + swizzled<128>(weight_row, 4 * s + 2 * t + lane / 16));
#pragma unroll
          for (int n = 0; n < Shape::kTokenSteps; ++n) {
            mma<kType>(sums[m][n], weight, x[n][2 * t], x[n][2 * t + 1]);
          }
        }
      }
    }
  };
  step(std::integral_constant<int, 0>());
  step(std::integral_constant<int, 1>());
}

// The residual of four features of a token, aligned and inside.
__device__ __forceinline__ void sm80_load_residual(const Epilogue& e, int token, int feature,
                                                   float (&values)[4]) {
  const uint8_t* from = static_cast<const uint8_t*>(e.residual) + token * e.residual_pitch +
                        feature * e.out_size();
  if (e.out_size() == 2) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    e.unpack_pair(words.x, values);
    e.unpack_pair(words.y, values + 2);
  } else if (e.out_size() == 1) {
    e.unpack_bytes(*reinterpret_cast<const uint32_t*>(from), values);
  } else {
    const float4 four = *reinterpret_cast<const float4*>(from);
    values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
  }
}

// Four finished features of a token, aligned and inside.
__device__ __forceinline__ void sm80_store_four(const Epilogue& e, int token, int feature,
                                                const float (&values)[4]) {
  uint8_t* to = static_cast<uint8_t*>(e.out) + token * e.out_pitch + feature * e.out_size();
  if (e.out_size() == 2) {
    *reinterpret_cast<uint2*>(to) = make_uint2(e.pack_pair(values), e.pack_pair(values + 2));
  } else if (e.out_size() == 1) {
    *reinterpret_cast<uint32_t*>(to) = e.pack_bytes(values);
  } else {
    *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
  }
}

// A tile's sums, token-major in shared memory, to out. A thread keeps four features for all its tokens.
template <class Shape, class SumType>
__device__ __forceinline__ void sm80_store_tile(const Sm80Arguments& a, const SumType* staged,
                                                int first_feature, int first_token) {
  const Epilogue& e = a.epilogue;
  constexpr int kAcross = Shape::kRows / 4;
  const int inside = 4 * (threadIdx.x % kAcross), feature = first_feature + inside;
  const bool is_whole = a.out_is_aligned && feature + 4 <= a.features;
  float scale[4], bias[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool exists = feature + i < a.features;
    scale[i] = exists ? e.scale_of(feature + i) : 0.0f;
    bias[i] = exists ? e.bias_of(feature + i) : 0.0f;
  }
#pragma unroll 2
  for (int t = threadIdx.x / kAcross; t < Shape::kTokens; t += Shape::kThreads / kAcross) {
    const int token = first_token + t;
    if (token >= a.tokens) break;
    const SumType* sums = staged + t * Shape::kSumPitch + inside;
    if (!is_whole) {
#pragma unroll 1
      for (int i = 0; i < 4 && feature + i < a.features; ++i) {
        e.store(sums[i], e.scale_of(feature + i), e.bias_of(feature + i), token, feature + i);
      }
      continue;
    }
    const uint4 bits = *reinterpret_cast<const uint4*>(sums);
    if (e.out_type == Type::s32) {
      uint8_t* row = static_cast<uint8_t*>(e.out) + token * e.out_pitch;
      *reinterpret_cast<uint4*>(row + 4 * feature) = bits;
      continue;
    }
    SumType four[4];
    memcpy(four, &bits, 16);
    float values[4] = {};
    if (e.has_residual()) sm80_load_residual(e, token, feature, values);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = e.apply(static_cast<float>(four[i]), scale[i], bias[i], values[i]);
    }
    sm80_store_four(e, token, feature, values);
  }
}

template <class Shape>
__device__ __forceinline__ void sm80_tile(const Sm80Arguments& a, uint8_t* shared) {
  using SumType = typename Sum<Shape::kType>::type;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp % Shape::kWarpsM * Shape::kWarpRows;
  const int warp_token = warp / Shape::kWarpsM * Shape::kWarpTokens;
  int m, n;
  sm80_place(a, m, n);
  const int first_feature = m * Shape::kRows, first_token = n * Shape::kTokens;

  SumType sums[Shape::kRowSteps][Shape::kTokenSteps][4] = {};
  constexpr int kAhead = Shape::kStages - 1;
  uint8_t* loading = shared;
  const uint8_t* multiplying = shared;
  for (int k = -kAhead; k < a.k_blocks; ++k) {
    if (k >= 0) {
      cp_async_wait_group<kAhead - 1>();
      __syncthreads();  // block k is there for all, and all are done with the stage loaded next
    }
    if (k + kAhead < a.k_blocks) {
      sm80_load<Shape>(a, loading, first_feature / kBlockRows, first_token, k + kAhead);
      loading += Shape::kStageBytes;
      if (loading == shared + Shape::kPipeBytes) loading = shared;
    }
    cp_async_commit_group();  // an empty one at the end: the count of groups stays that of blocks
    if (k >= 0) {
      sm80_multiply<Shape>(sums, multiplying, warp_row, warp_token);
      multiplying += Shape::kStageBytes;
      if (multiplying == shared + Shape::kPipeBytes) multiplying = shared;
    }
  }

  __syncthreads();  // all are done with the stages: the sums take their place
  SumType* staged = reinterpret_cast<SumType*>(shared);
#pragma unroll
  for (int i = 0; i < Shape::kRowSteps; ++i) {
#pragma unroll
    for (int t = 0; t < Shape::kTokenSteps; ++t) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int token = warp_token + 8 * t + 2 * (lane % 4) + (j & 1);
        const int feature = warp_row + 16 * i + lane / 4 + 8 * (j >> 1);
        staged[token * Shape::kSumPitch + feature] = sums[i][t][j];
      }
    }
  }
  __syncthreads();
  sm80_store_tile<Shape>(a, staged, first_feature, first_token);
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kResident)
    sm80_gemm_kernel(const Sm80Arguments a) {
  extern __shared__ __align__(128) uint8_t shared[];
#if defined(__CUDA_ARCH__)
  constexpr int kCapability = __CUDA_ARCH__ / 10;
#else
  constexpr int kCapability = 89;
#endif
  if constexpr (sm80_has<Shape::kType>(kCapability, Shape::kRows)) {
    sm80_tile<Shape>(a, shared);
  } else {
    __trap();  // sm80_choose never comes here
  }
}

}  // namespace sparse24
