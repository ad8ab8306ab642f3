// Which tiles there are, and which is expected to be fastest for a problem: one table, one model.
#pragma once
#include "gemm.h"
#include "layout.h"

namespace sparse24 {

// A block's tile: `warpgroups` x `row_steps` x 64 output features by `tokens`.
struct Tile {
  int warpgroups, row_steps, tokens;
  constexpr int rows() const { return 64 * warpgroups * row_steps; }
};

constexpr Tile kTiles[] = {
    {2, 2, 128},  // 256 x 128
    {2, 1, 256},  // 128 x 256
    {2, 1, 128},  // 128 x 128
    {2, 1, 64},   // 128 x 64
    {1, 1, 64},   // 64 x 64
    {1, 1, 16},   // 64 x 16
    {1, 1, 128},  // 64 x 128, of grouped convolutions
};
constexpr int kTileCount = sizeof(kTiles) / sizeof(kTiles[0]);

// What the model says a plan takes, and the plan of the least, of those that can run.
double predict_seconds(const Plan& plan, int tokens, int in_features, int out_features, int size,
                       bool sparse, int multiprocessors);
Plan choose_plan(int tokens, int in_features, int out_features, int size, bool sparse,
                 int multiprocessors, const Convolution* convolution = nullptr);

}  // namespace sparse24
