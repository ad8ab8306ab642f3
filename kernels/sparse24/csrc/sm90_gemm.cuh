// sm_90a: out[tokens, features] = epilogue(weight . x), weight 2:4 or dense in layout.h's blocks,
// x [tokens, in] with contiguous columns or a convolution's pixels (implicit GEMM: the copy engine's
// im2col mode gathers them); fp32 sums, of int8 int32; K in ascending order, unsplit.
//
// One warp copies (producer), one or two warpgroups multiply: together at one tile, or by turns, one
// storing its tile while the other multiplies the next. Persistent blocks, in clusters that share x
// along features and the weight along tokens. The tensor cores hold features as rows, so
// stmatrix transposes a finished tile into staging buffers, which the copy engine stores while the
// next tile is multiplied.
#pragma once
#include "ptx.h"
#include "sm90_produce.cuh"
#include "sm90_shape.cuh"
#include "sm90_store.cuh"
#include "wgmma.h"

namespace sparse24 {

// A thread's metadata of `kCount` blocks of the weight, one after the other.
template <class Shape, int kCount>
struct Sm90Metadata {
  uint2 of[kCount];

  __device__ __forceinline__ void load(uint32_t weight_at, int thread) {
    if constexpr (Shape::kSparse) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const uint32_t words = weight_at + i * Shape::kBlockBytes + kValueBytes;
        if constexpr (Shape::kSize == 2) {
          of[i].x = load_shared(words + 4 * thread);
        } else {
          of[i] = load_shared_2(words + 8 * thread);
        }
      }
    }
  }
};

// The products of one block of K: kSteps x kRowSteps wgmmas, which read `metadata` until they end.
template <class Shape, class Sum>
__device__ __forceinline__ void sm90_issue(Sum (&sums)[Shape::kRowSteps][Shape::kTokens / 2], uint32_t x_at,
                                           uint32_t weight_at, const uint2* metadata, bool is_first) {
  using Mma = Wgmma<Shape::kType, Shape::kSparse, Shape::kTokens>;
  const uint64_t x_descriptor = wgmma_descriptor<128>(x_at);
  const uint64_t weight_descriptor = wgmma_descriptor<Shape::kWeightRowBytes>(weight_at);
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
}

// The products of one stage.
template <class Shape, class Sum>
__device__ __forceinline__ void sm90_multiply(Sum (&sums)[Shape::kRowSteps][Shape::kTokens / 2],
                                              uint32_t x_at, uint32_t weight_at, int thread,
                                              bool is_first) {
  Sm90Metadata<Shape, Shape::kRowSteps> metadata;
  metadata.load(weight_at, thread);
  wgmma_fence();
  sm90_issue<Shape>(sums, x_at, weight_at, metadata.of, is_first);
  wgmma_commit_group();
}

// The products of one stage of a window: each place of the kernel meets the tokens from its own first
// pixel on. (The descriptor may start at any row: operands are swizzled by address.)
template <class Shape, class Sum>
__device__ __forceinline__ void sm90_multiply_window(Sum (&sums)[Shape::kRowSteps][Shape::kTokens / 2],
                                                     uint32_t x_at, uint32_t weight_at, int pitch,
                                                     const Sm90Metadata<Shape, Shape::kTaps>& metadata) {
  wgmma_fence();
#pragma unroll
  for (int tap = 0; tap < Shape::kTaps; ++tap) {
    const uint32_t pixel = x_at + (tap / 3 * pitch + tap % 3) * kBlockBytesOfK;
    sm90_issue<Shape>(sums, pixel, weight_at + tap * Shape::kBlockBytes, metadata.of + tap, tap == 0);
  }
  wgmma_commit_group();
}

template <class Shape>
__device__ __forceinline__ void sm90_consume(const CUtensorMap& out_map, const CUtensorMap& residual_map,
                                             const Sm90Arguments& arguments, const Memory<Shape>& memory,
                                             uint8_t* shared) {
  using Sum = typename Accumulator<Shape::kType>::type;
  const int warpgroup = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, lane = threadIdx.x % 32;
  const Cluster<Shape::kShares> cluster(arguments);
  // Lane i of every warp tells the i-th block that loads for this one that a stage is free: there
  // lies its barrier of the first stage, or 0.
  const int other = lane - cluster.m;
  const uint32_t told = lane < cluster.m
                            ? lane + cluster.m * cluster.rank_n
                            : cluster.rank_m + cluster.m * (other < cluster.rank_n ? other : other + 1);
  const uint32_t tell = lane < cluster.m + cluster.n - 1 ? shared_address_in(memory.empty(0), told) : 0;
  const auto release = [&](int stage) {
    __syncwarp();  // the other lanes' metadata has been read too
    if constexpr (!Shape::kShares) {
      if (elect_one()) mbarrier_arrive(memory.empty(stage));
    } else {
      if (tell != 0) mbarrier_arrive_cluster(tell + 8 * stage);
    }
  };
  const int share = Shape::kByTurns ? 0 : warpgroup;  // of a tile that is multiplied together
  const int row = share * 64 * Shape::kRowSteps;
  const uint32_t my_weight = share * Shape::kRowSteps * Shape::kBlockBytes;
  const Epilogue& epilogue = arguments.epilogue;
  const bool has_residual = epilogue.has_residual() && arguments.stores_by_copy_engine;
  Staging<Shape> staging = {&out_map, &residual_map, memory.staging(warpgroup), memory.residual(warpgroup),
                            warpgroup, thread};
  Ring<Shape::kStages> ring;
  Schedule schedule(cluster.m * cluster.n);
  uint32_t turn = warpgroup ^ 1;  // the first is the first warpgroup's without a wait
  Kept<Shape> weights;  // of a window
  const auto meet = [&](int m) {
    if (weights.is_at(m)) return;
    if (weights.features >= 0) {
      // it may have been the other's alone: none is given back before it has come
      mbarrier_wait(memory.weight_full(weights.ring.stage), weights.ring.phase);
      __syncwarp();
      if (elect_one()) mbarrier_arrive(memory.weight_empty(weights.ring.stage));
    }
    weights.turn_to(m);
  };
  const auto leave_to_other = [&] {
    if constexpr (Shape::kIsWindow) {
      int m, n;
      schedule.place(arguments, m, n);
      meet(m);
    }
    schedule.next();
    ring.skip(arguments.k_blocks);
  };
  if (Shape::kByTurns && warpgroup == 1) leave_to_other();
  while (!schedule.done(arguments)) {
    int m, n;
    schedule.place(arguments, m, n);
    if constexpr (Shape::kIsWindow) meet(m);
    const int feature = (m * cluster.m + cluster.rank_m) * Shape::kRows + row;
    const int token = (n * cluster.n + cluster.rank_n) * Shape::kTokens;
    if (has_residual && thread == 0) {
      staging.load_first_residuals(feature, token, epilogue.out_size());
    }
    Affines<Shape> affines(epilogue, feature + 16 * (thread / 32) + lane / 4, arguments.features);
    Sum sums[Shape::kRowSteps][Shape::kTokens / 2];
    int previous = 0;
    Sm90Metadata<Shape, Shape::kTaps> metadata;  // of a window: nothing to wait for between its places
    if constexpr (Shape::kIsWindow) {
      mbarrier_wait(memory.weight_full(weights.ring.stage), weights.ring.phase);
      metadata.load(memory.weight(weights.ring.stage), thread);
    }
    if constexpr (Shape::kByTurns) mbarrier_wait(memory.turn(warpgroup), turn);
    for (int k = 0; k < arguments.k_blocks; ++k, ring.next()) {
      mbarrier_wait(memory.full(ring.stage), ring.phase);
      if constexpr (Shape::kIsWindow) {
        sm90_multiply_window<Shape>(sums, memory.x(ring.stage), memory.weight(weights.ring.stage),
                                    arguments.window.pitch, metadata);
      } else {
        sm90_multiply<Shape>(sums, memory.x(ring.stage), memory.weight(ring.stage) + my_weight, thread, k == 0);
      }
      wgmma_wait_group<1>();
      if (k > 0) release(previous);
      previous = ring.stage;
    }
    if constexpr (Shape::kByTurns) {
      turn ^= 1;
      if (thread == 0) mbarrier_arrive(memory.turn(warpgroup ^ 1));
    }
    affines.load_late(epilogue);
    if constexpr (Shape::kIsWindow) {
      const WindowPlace place(arguments, n);
      staging.row = place.row;
      staging.image = place.image;
    }
    wgmma_wait_group<0>();
    release(previous);
    if (!Shape::kIsWindow && !arguments.stores_by_copy_engine) {
      if constexpr (!Shape::kIsWindow) {
        const auto plain = shared + (memory.staging(warpgroup) - shared_address(shared));
        sm90_store_plain<Shape>(sums, arguments, reinterpret_cast<Sum*>(plain), feature, token, warpgroup, thread);
      }
    } else if (epilogue.out_size() == 2) {
      sm90_store_tile<Shape, 2>(sums, affines, epilogue, staging, feature, token);
    } else {
      if constexpr (Shape::kSize == 1) {
        sm90_store_tile<Shape, 1>(sums, affines, epilogue, staging, feature, token);
      }
    }
    schedule.next();
    if constexpr (Shape::kByTurns) leave_to_other();
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
  const Memory<Shape> memory = {(shared_address(shared) + 1023) & ~1023u};
  const int blocks = arguments.cluster_m * arguments.cluster_n;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::kStages; ++i) {
      mbarrier_init(memory.full(i), 1);
      mbarrier_init(memory.empty(i),
                    4 * Shape::kTogether * (arguments.cluster_m + arguments.cluster_n - 1));
    }
    for (int i = 0; i < Shape::kWarpgroups; ++i) {
      mbarrier_init(memory.turn(i), 1);
      for (int j = 0; j < Shape::kBuffers; ++j) mbarrier_init(memory.residual(i) + 8 * j, 1);
    }
    for (int i = 0; i < Shape::kKept; ++i) {
      mbarrier_init(memory.weight_full(i), 1);
      mbarrier_init(memory.weight_empty(i), 4 * Shape::kWarpgroups);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  if (blocks > 1) cluster_sync();
  wait_for_kernel_before();
  let_next_kernel_start();

  const int role = threadIdx.x / 128;
  if (role == 0) {
    setmaxnreg_decrease<Shape::kProducerRegisters>();
    if (threadIdx.x / 32 == 0 && elect_one()) {
      if constexpr (Shape::kIsWindow) {
        sm90_produce_windows<Shape>(x_map, arguments, memory);
      } else if (arguments.is_convolution) {
        sm90_produce<Shape, Sm90Pixels>(x_map, arguments, memory);
      } else {
        sm90_produce<Shape, Sm90Rows>(x_map, arguments, memory);
      }
    }
    __syncwarp();
  } else {
    setmaxnreg_increase<Shape::kConsumerRegisters>();
    sm90_consume<Shape>(out_map, residual_map, arguments, memory, shared);
  }
  // A block must outlive what others of its cluster still copy into it or tell it. (Asked anew, so
  // that no register is kept for it.)
  if (cluster_blocks() > 1) cluster_sync();
}

}  // namespace sparse24
