// The warp that copies: weight blocks and rows or pixels of x into the ring of stages.
#pragma once
#include "ptx.h"
#include "sm90_shape.cuh"

namespace sparse24 {

// Where the copies of x start: rows from `token` on, or the pixels that a convolution's tile meets.
// `copy` brings the block of K `k` and is called with k = 0, 1, 2, ...
struct Sm90Rows {
  int token;

  __device__ __forceinline__ Sm90Rows(const Sm90Arguments&, int, int first_token) : token(first_token) {}

  template <class Shape>
  __device__ __forceinline__ void copy(const CUtensorMap* map, const Sm90Arguments& arguments, uint32_t to,
                                       int k, uint32_t barrier, uint16_t mask) {
    constexpr int kColumns = block_k(Shape::kSize);
    if (!Shape::kShares || arguments.cluster_m == 1) {
      copy_tensor_2d(to, map, k * kColumns, token, barrier);
    } else {
      copy_tensor_2d_multicast(to, map, k * kColumns, token, barrier, mask);
    }
  }
};

struct Sm90Pixels {
  int from, w, h, n;        // the channel and the first pixel
  uint32_t from_first = 0;  // where in the kernel: pixels to the right and, above 16 bits, down

  __device__ __forceinline__ Sm90Pixels(const Sm90Arguments& arguments, int feature, int first_token) {
    const Convolution& c = arguments.convolution;
    from = feature / arguments.group_features * arguments.group_channels;
    const int row = first_token / c.out_width;
    w = (first_token - row * c.out_width) * c.stride_width - c.padding_width;
    n = row / c.out_height;
    h = (row - n * c.out_height) * c.stride_height - c.padding_height;
  }

  template <class Shape>
  __device__ __forceinline__ void copy(const CUtensorMap* map, const Sm90Arguments& arguments, uint32_t to,
                                       int k, uint32_t barrier, uint16_t) {
    constexpr int kColumns = block_k(Shape::kSize);
    const Convolution& c = arguments.convolution;
    copy_tensor_im2col(to, map, from, w, h, n, from_first, from_first >> 16, barrier);
    from += kColumns;
    if ((k + 1) % arguments.channel_blocks != 0) return;
    from -= arguments.channel_blocks * kColumns;
    from_first += c.dilation_width;
    if ((from_first & 0xffff) < c.kernel_width * c.dilation_width) return;
    from_first = (from_first >> 16) + c.dilation_height << 16;
  }
};

template <class Shape, class X>
__device__ __forceinline__ void sm90_produce(const CUtensorMap& x_map, const Sm90Arguments& arguments,
                                             const Memory<Shape>& memory) {
  const Cluster<Shape::kShares> cluster(arguments);
  uint16_t x_mask = 0, weight_mask = 0;  // the blocks that get what this one loads
  for (int i = 0; i < cluster.m; ++i) x_mask |= 1 << (i + cluster.m * cluster.rank_n);
  for (int i = 0; i < cluster.n; ++i) weight_mask |= 1 << (cluster.rank_m + cluster.m * i);
  const int x_rows = Shape::kTokens / cluster.m;
  constexpr int kBlocks = Shape::kRows / 64;
  Ring<Shape::kStages> ring;
  for (Schedule schedule(cluster.m * cluster.n); !schedule.done(arguments); schedule.next()) {
    int m, n;
    schedule.place(arguments, m, n);
    const int first_block = (m * cluster.m + cluster.rank_m) * kBlocks;
    const int token = (n * cluster.n + cluster.rank_n) * Shape::kTokens;
    X x(arguments, first_block * 64, token + cluster.rank_m * x_rows);
    for (int k = 0; k < arguments.k_blocks; ++k, ring.next()) {
      mbarrier_wait(memory.empty(ring.stage), ring.phase ^ 1);
      const uint32_t barrier = memory.full(ring.stage);
      mbarrier_arrive_expect_tx(barrier, Shape::kTokenBytes + Shape::kWeightBytes);
      const uint32_t x_to = memory.x(ring.stage) + cluster.rank_m * x_rows * kBlockBytesOfK;
      x.template copy<Shape>(&x_map, arguments, x_to, k, barrier, x_mask);
      const uint32_t weight_to = memory.weight(ring.stage);
      const uint8_t* from = arguments.weight + static_cast<int64_t>(k) * arguments.row_blocks * Shape::kBlockBytes;
      if (cluster.n == 1 && first_block + kBlocks <= arguments.row_blocks) {
        copy_bulk(weight_to, from + static_cast<int64_t>(first_block) * Shape::kBlockBytes,
                  Shape::kWeightBytes, barrier);
        continue;
      }
#pragma unroll 1
      for (int i = 0; i < kBlocks; ++i) {
        // Beyond the last block the last is read again: its products are never stored.
        const int block = min(first_block + i, arguments.row_blocks - 1);
        const uint8_t* block_from = from + static_cast<int64_t>(block) * Shape::kBlockBytes;
        const uint32_t block_to = weight_to + i * Shape::kBlockBytes;
        if (cluster.n == 1) {
          copy_bulk(block_to, block_from, Shape::kBlockBytes, barrier);
        } else if (i % cluster.n == cluster.rank_n) {
          copy_bulk_multicast(block_to, block_from, Shape::kBlockBytes, barrier, weight_mask);
        }
      }
    }
  }
}

// Where a window's tile lies: its image and the first row of output pixels.
struct WindowPlace {
  int image, row;

  __device__ __forceinline__ WindowPlace(const Sm90Arguments& arguments, int tile)
      : image(arguments.by_image.divide(tile)) {
    row = (tile - image * arguments.window.tiles) * arguments.window.rows;
  }
};

// A stage is what a window's tile meets; its features' weight, nine blocks, comes where it is not there yet.
template <class Shape>
__device__ __forceinline__ void sm90_produce_windows(const CUtensorMap& x_map, const Sm90Arguments& arguments,
                                                     const Memory<Shape>& memory) {
  const uint32_t bytes = arguments.window.loaded() * kBlockBytesOfK;
  Ring<Shape::kStages> ring;
  Kept<Shape> weights;
  for (Schedule schedule(1); !schedule.done(arguments); schedule.next(), ring.next()) {
    int m, n;
    schedule.place(arguments, m, n);
    const WindowPlace place(arguments, n);
    const int from = m * Shape::kRows / arguments.group_features * arguments.group_channels;
    mbarrier_wait(memory.empty(ring.stage), ring.phase ^ 1);
    mbarrier_arrive_expect_tx(memory.full(ring.stage), bytes);
    copy_tensor_4d(memory.x(ring.stage), &x_map, from, -1, place.row - 1, place.image, memory.full(ring.stage));
    if (weights.is_at(m)) continue;
    weights.turn_to(m);
    const int kept = weights.ring.stage;
    mbarrier_wait(memory.weight_empty(kept), weights.ring.phase ^ 1);
    mbarrier_arrive_expect_tx(memory.weight_full(kept), Shape::kWeightBytes);
    const uint8_t* weight = arguments.weight + static_cast<int64_t>(m) * Shape::kBlockBytes;
#pragma unroll 1
    for (int tap = 0; tap < Shape::kTaps; ++tap) {
      copy_bulk(memory.weight(kept) + tap * Shape::kBlockBytes, weight, Shape::kBlockBytes,
                memory.weight_full(kept));
      weight += static_cast<int64_t>(arguments.row_blocks) * Shape::kBlockBytes;
    }
  }
}

}  // namespace sparse24
