// Which tiles there are, and which is expected to be fastest for a problem: one table, one model.
#pragma once
#include "gemm.h"
#include "layout.h"

namespace sparse24 {

// A tile: `row_steps` x 64 output features of each of the warpgroups by `tokens`; where these go by
// turns, each multiplies a tile of its own.
struct Tile {
  int warpgroups, row_steps, tokens;
  bool by_turns = false;
  constexpr int rows() const { return 64 * row_steps * (by_turns ? 1 : warpgroups); }
  // Its sums take more than half of the registers. Those of 8-bit types, which need more beside
  // them, do not fit.
  constexpr bool is_wide() const { return row_steps * tokens > 256; }
  constexpr bool takes(int size) const { return size == 2 || !is_wide(); }
  // Whether clusters of blocks may share copies; that takes the producer of a wide tile more
  // registers than it is left.
  constexpr bool shares() const { return !is_wide(); }
};

constexpr Tile kTiles[] = {
    {2, 2, 128},  // 256 x 128
    {2, 2, 192},  // 256 x 192
    {2, 1, 128},  // 128 x 128
    {2, 1, 64},   // 128 x 64
    {1, 1, 64},   // 64 x 64
    {1, 1, 16},   // 64 x 16
    {1, 1, 128},  // 64 x 128, of grouped convolutions
    {2, 2, 128, true},  // 128 x 128
};
constexpr int kTileCount = sizeof(kTiles) / sizeof(kTiles[0]);

// What the model says a plan takes, and the plan of the least, of those that can run.
double predict_seconds(const Plan& plan, int tokens, int in_features, int out_features, int size,
                       bool sparse, int multiprocessors);
Plan choose_plan(int tokens, int in_features, int out_features, int size, bool sparse,
                 int multiprocessors, const Convolution* convolution = nullptr);

}  // namespace sparse24
