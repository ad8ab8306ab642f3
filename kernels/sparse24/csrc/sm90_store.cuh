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

// Scale and bias of the features g and g + 8 of a row step. The bias stays as its bits were loaded,
// so that nothing waits for it before it is used.
struct Affine {
  float scale[2];
  uint32_t bias[2];
};

// Those of a tile: asked for before the products and first looked at behind them, but by a wide tile,
// whose sums leave the registers for it only once the last products are under way.
template <class Shape>
struct Affines {
  Affine of[Shape::kRowSteps];
  int feature, features;

  __device__ __forceinline__ Affines(const Epilogue& epilogue, int first_feature, int all_features)
      : feature(first_feature), features(all_features) {
    if constexpr (!Shape::kIsWide) load(epilogue);
  }
  __device__ __forceinline__ void load_late(const Epilogue& epilogue) {
    if constexpr (Shape::kIsWide) load(epilogue);
  }

 private:
  // Each `value` of all row steps from where it lies; what is beyond the features is never stored.
  template <class Value, class Load>
  __device__ __forceinline__ void each(Value (Affine::*values)[2], Load load) {
#pragma unroll
    for (int i = 0; i < Shape::kRowSteps; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) (of[i].*values)[j] = load(min(feature + 64 * i + 8 * j, features - 1));
    }
  }
  __device__ __forceinline__ void load(const Epilogue& epilogue) {
    if (epilogue.scale != nullptr) {
      each(&Affine::scale, [&](int at) { return __uint_as_float(load_global(epilogue.scale + at)); });
    } else {
      each(&Affine::scale, [](int) { return 1.0f; });
    }
    if (epilogue.bias == nullptr) {
      each(&Affine::bias, [](int) { return 0u; });
    } else if (epilogue.bias_type == Type::f32) {
      each(&Affine::bias, [&](int at) { return load_global(static_cast<const float*>(epilogue.bias) + at); });
    } else {
      each(&Affine::bias, [&](int at) { return load_global_16(static_cast<const uint16_t*>(epilogue.bias) + at); });
    }
  }
};

// 64 features x kTokens of a part into its buffer, where their residual lies.
template <int kTokens, int kOutSize, Activation kActivation, class Sum>
__device__ __forceinline__ void sm90_stage(const Sum* sums, const Epilogue& epilogue, uint32_t buffer, const float (&scale)[2], const float (&bias)[2],
                                           int warp, int lane) {
  constexpr int kValues = kTokens / 2;  // of every 8 tokens: feature g twice, g + 8 twice
  constexpr int kWords = kValues * kOutSize / 4;
  constexpr int kStep = kOutSize == 2 ? 4 : 2;  // words of 16 tokens
  uint32_t at[kWords / kStep], words[kWords];
#pragma unroll
  for (int t = 0; t < kWords / kStep; ++t) {
    const int matrix = lane >> 3;
    const int row = 16 * t + 8 * (kOutSize == 2 ? matrix >> 1 : matrix & 1) + (lane & 7);
    at[t] = buffer + staging_offset<kOutSize>(row, kOutSize == 2 ? 2 * warp + (matrix & 1) : warp);
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
  epilogue.template finish<kActivation, kOutSize>(values, words);
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

// What a warpgroup's tiles leave through: its buffers, one after the other, and who waits for what.
template <class Shape>
struct Staging {
  const CUtensorMap* out_map;
  const CUtensorMap* residual_map;
  uint32_t buffers, barriers;  // a barrier for the residual of each buffer
  int warpgroup, thread;
  Ring<Shape::kBuffers> ring = {};
  int row = 0, image = 0;  // of a window's tile

  __device__ __forceinline__ uint32_t buffer(int slot) const { return buffers + slot * Shape::kPartBytes; }
  __device__ __forceinline__ uint32_t barrier(int slot) const { return barriers + 8 * slot; }

  // By one thread: has the residual of the part `ahead` parts from here copied into its buffer.
  __device__ __forceinline__ void load_residual(int ahead, int part, int feature, int token,
                                                int out_size) const {
    const int slot = (ring.stage + ahead) % Shape::kBuffers;
    mbarrier_arrive_expect_tx(barrier(slot), Shape::kPart * 64 * out_size);
    copy_tensor_2d(buffer(slot), residual_map, feature_of(part, feature), token_of(part, token),
                   barrier(slot));
  }
  // Before the products, which hide how long the first residuals take to come.
  __device__ __forceinline__ void load_first_residuals(int feature, int token, int out_size) const {
    bulk_wait_group_read<0>();  // the tile before has left the buffers
#pragma unroll
    for (int part = 0; part < Shape::kParts && part < Shape::kBuffers; ++part) {
      load_residual(part, part, feature, token, out_size);
    }
  }
  static __device__ __forceinline__ int feature_of(int part, int feature) {
    return feature + 64 * (part / (Shape::kParts / Shape::kRowSteps));
  }
  static __device__ __forceinline__ int token_of(int part, int token) {
    return token + Shape::kPart * (part % (Shape::kParts / Shape::kRowSteps));
  }
};

// A finished warpgroup's tile, part by part; the last stores run on under the next tile.
template <class Shape, int kOutSize, Activation kActivation, class Sum>
__device__ __forceinline__ void sm90_store_parts(const Sum (&sums)[Shape::kRowSteps][Shape::kTokens / 2],
                                                 const Affines<Shape>& affines,
                                                 const Epilogue& epilogue, Staging<Shape>& staging,
                                                 int feature, int token) {
  const bool is_first = staging.thread == 0;
  if constexpr (Shape::kBuffers == 1) {
    if (is_first) bulk_wait_group_read<0>();  // the tile before has left the buffer
    named_barrier(1 + staging.warpgroup, 128);
  }
#pragma unroll
  for (int part = 0; part < Shape::kParts; ++part) {
    constexpr int kPerStep = Shape::kParts / Shape::kRowSteps;
    const int i = part / kPerStep;
    const uint32_t buffer = staging.buffer(staging.ring.stage);
    if (epilogue.has_residual()) {
      mbarrier_wait(staging.barrier(staging.ring.stage), staging.ring.phase);
    }
    const Affine& affine = affines.of[i];
    const float bias[2] = {epilogue.as_float(affine.bias[0]), epilogue.as_float(affine.bias[1])};
    // All of a part at once where the registers allow it.
    constexpr int kMost = Shape::kIsWide ? 16 : kOutSize == 1 ? 32 : 64;
    constexpr int kAtOnce = Shape::kPart < kMost ? Shape::kPart : kMost;
#pragma unroll
    for (int t = 0; t < Shape::kPart; t += kAtOnce) {
      sm90_stage<kAtOnce, kOutSize, kActivation>(
          sums[i] + (part % kPerStep * Shape::kPart + t) / 2, epilogue, buffer + t * 64 * kOutSize,
          affine.scale, bias, staging.thread / 32, staging.thread % 32);
    }
    fence_proxy_async();
    if (is_first) {
      // The next part's buffer was stored from two parts ago.
      if constexpr (Shape::kBuffers == 1) {
      } else if (!epilogue.has_residual()) {
        bulk_wait_group_read<Shape::kBuffers - 2>();
      } else if (part > 0 && part + 2 < Shape::kParts) {
        bulk_wait_group_read<0>();
        staging.load_residual(2, part + 2, feature, token, kOutSize);
      }
    }
    named_barrier(1 + staging.warpgroup, 128);
    if (is_first) {
      if constexpr (Shape::kIsWindow) {
        store_tensor_4d(staging.out_map, buffer, feature, 0, staging.row, staging.image);
      } else {
        store_tensor_2d(staging.out_map, buffer, staging.feature_of(part, feature),
                        staging.token_of(part, token));
      }
      bulk_commit_group();
    }
    staging.ring.next();
  }
}

// As above, with one branch on the activation for the whole tile.
template <class Shape, int kOutSize, class Sum>
__device__ __forceinline__ void sm90_store_tile(const Sum (&sums)[Shape::kRowSteps][Shape::kTokens / 2],
                                                const Affines<Shape>& affines,
                                                const Epilogue& epilogue, Staging<Shape>& staging,
                                                int feature, int token) {
  switch (epilogue.activation) {
    case Activation::gelu_tanh:
      return sm90_store_parts<Shape, kOutSize, Activation::gelu_tanh>(sums, affines, epilogue, staging,
                                                                      feature, token);
    case Activation::gelu_erf:
      return sm90_store_parts<Shape, kOutSize, Activation::gelu_erf>(sums, affines, epilogue, staging,
                                                                     feature, token);
    default:
      return sm90_store_parts<Shape, kOutSize, Activation::none>(sums, affines, epilogue, staging, feature,
                                                                 token);
  }
}

// Out types of 4 bytes, and rows the copy engine cannot address: bare sums through the staging
// buffers, then each thread finishes and stores neighboring features.
template <class Shape, class Sum>
__device__ __forceinline__ void sm90_store_plain(const Sum (&sums)[Shape::kRowSteps][Shape::kTokens / 2],
                                                 const Sm90Arguments& arguments, Sum* buffer, int feature,
                                                 int token, int warpgroup, int thread) {
  constexpr int kPart = Shape::kPart;  // tokens, of 64 sums of 4 bytes
  static_assert(kPart * 64 * 4 <= Shape::kStagingBytes, "a part of sums must fit into the buffers");
  const Epilogue& epilogue = arguments.epilogue;
  // Swizzled, so that a warp's writes of 4 token pairs x 8 features meet 32 banks.
  const auto at = [&](int t, int f) { return buffer + (t * 64 + (f ^ (t >> 1 & 3) << 3)); };
  const int first = 2 * (thread & 3), g = 16 * (thread / 32) + thread % 32 / 4;
  Sum* const mine[2] = {at(first, g), at(first, g + 8)};
#pragma unroll
  for (int i = 0; i < Shape::kRowSteps; ++i) {
#pragma unroll
    for (int part = 0; part < Shape::kTokens; part += kPart) {
      named_barrier(1 + warpgroup, 128);
#pragma unroll
      for (int j = 0; j < kPart / 2; ++j) {  // 4 sums for every 8 tokens
        mine[j >> 1 & 1][64 * (8 * (j >> 2) + (j & 1))] = sums[i][part / 2 + j];
      }
      named_barrier(1 + warpgroup, 128);
#pragma unroll 1
      for (int index = thread; index < kPart * 64; index += 128) {
        const int t = index / 64, row = feature + 64 * i + index % 64;
        if (token + part + t >= arguments.tokens || row >= arguments.features) continue;
        epilogue.store(*at(t, index % 64), epilogue.scale_of(row), epilogue.bias_of(row),
                       token + part + t, row);
      }
    }
  }
}

}  // namespace sparse24
