// The warp that copies: weight blocks and rows or pixels of x into the ring of stages.
#pragma once
#include "ptx.h"
#include "sm90_shape.cuh"

namespace sparse24 {

// Where the producer's copies of x start: plain rows, or pixels and a place of the kernel.
struct XSource {
  const CUtensorMap* map;
  const Sm90Arguments& arguments;
  int token;            // plain
  int channel, w, h, n;  // of a convolution: its first channel and pixel
  int block, s, r;      // and where in K

  __device__ __forceinline__ XSource(const CUtensorMap* x_map, const Sm90Arguments& given, int feature,
                                     int first_token)
      : map(x_map), arguments(given), token(first_token), block(0), s(0), r(0) {
    if (!arguments.is_convolution) return;
    const Convolution& c = arguments.convolution;
    channel = feature / arguments.group_features * arguments.group_channels;
    const int row = first_token / c.out_width;
    w = (first_token - row * c.out_width) * c.stride_width - c.padding_width;
    n = row / c.out_height;
    h = (row - n * c.out_height) * c.stride_height - c.padding_height;
  }
  // The block of K `k`; called with k = 0, 1, 2, ...
  template <int kColumns>
  __device__ __forceinline__ void copy(uint32_t to, int k, uint32_t barrier, uint16_t mask) {
    if (!arguments.is_convolution) {
      if (arguments.cluster_m == 1) {
        copy_tensor_2d(to, map, k * kColumns, token, barrier);
      } else {
        copy_tensor_2d_multicast(to, map, k * kColumns, token, barrier, mask);
      }
      return;
    }
    const Convolution& c = arguments.convolution;
    const int from = channel + block * kColumns;
    const uint16_t right = s * c.dilation_width, down = r * c.dilation_height;
    copy_tensor_im2col(to, map, from, w, h, n, right, down, barrier);
    if (++block < arguments.channel_blocks) return;
    block = 0;
    if (++s < c.kernel_width) return;
    s = 0;
    ++r;
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
    XSource x(&x_map, arguments, first_block * 64,
              (n * cluster_n + rank_n) * Shape::kTokens + rank_m * x_rows);
    for (int k = 0; k < arguments.k_blocks; ++k, ring.next()) {
      mbarrier_wait(empty + 8 * ring.stage, ring.phase ^ 1);
      const uint32_t barrier = full + 8 * ring.stage;
      mbarrier_arrive_expect_tx(barrier, Shape::kTokenBytes + Shape::kWeightBytes);
      const uint32_t x_to = x_at + ring.stage * Shape::kTokenBytes + rank_m * x_rows * kBlockBytesOfK;
      x.copy<block_k(Shape::kSize)>(x_to, k, barrier, x_mask);
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

}  // namespace sparse24
