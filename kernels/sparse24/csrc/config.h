// Which tiles there are, and which is expected to be fastest for a problem: one table, one model.
#pragma once
#include "gemm.h"
#include "layout.h"

namespace sparse24 {

// A tile: `row_steps` x 64 output features of each of the warpgroups by `tokens`; where these go by
// turns, each multiplies a tile of its own. The tokens of a window are whole rows of one image, whose
// input is copied once for all places of a 3 x 3 kernel; the weight stays for all tiles of its features.
struct Tile {
  int warpgroups, row_steps, tokens;
  bool by_turns = false, is_window = false;
  constexpr int rows() const { return 64 * row_steps * (by_turns ? 1 : warpgroups); }
  // Its sums take more than half of the registers. Those of 8-bit types, which need more beside
  // them, do not fit.
  constexpr bool is_wide() const { return row_steps * tokens > 256; }
  constexpr bool takes(int size) const { return size == 2 || !is_wide(); }
  // Whether clusters of blocks may share copies; that takes the producer of a wide tile more
  // registers than it is left.
  constexpr bool shares() const { return !is_wide() && !is_window; }
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
    {2, 1, 128, true, true},  // 64 x 128 of a window, of grouped convolutions
};
constexpr int kTileCount = sizeof(kTiles) / sizeof(kTiles[0]);

constexpr int kWindowRoom = 288;  // pixels; images of up to 56 columns fit

// A window's input in shared memory: `pitch` pixels a row, one more than an image's, since the zero right
// of a row is the one left of the next; a pixel's neighbors lie 1 and `pitch` pixels apart.
struct Window {
  int pitch = 0, rows = 0, tiles = 0;  // rows: of output pixels of a tile; tiles: of an image

  // That of a convolution in tiles of `tokens`, for elements of `size` bytes; without rows if none.
  static Window of(const Convolution& c, int tokens, int size) {
    const bool is_same = c.kernel_height == 3 && c.kernel_width == 3 && c.stride_height == 1 &&
                         c.stride_width == 1 && c.padding_height == 1 && c.padding_width == 1 &&
                         c.dilation_height == 1 && c.dilation_width == 1;
    const bool is_one_block = c.channels / c.groups <= block_k(size);
    Window window;
    window.pitch = c.width + 1;
    const int most = tokens / window.pitch;
    if (!is_same || !is_one_block || most == 0 || tokens + 2 * window.pitch + 2 > kWindowRoom) return {};
    window.tiles = ceil_div(c.height, most);
    window.rows = ceil_div(c.height, window.tiles);
    return window.loaded() <= kWindowRoom ? window : Window();
  }
  // Pixels that are copied: a row above, one below, and the zeros at the start of another.
  SPARSE24_BOTH constexpr int loaded() const { return (rows + 3) * pitch; }
};

// What the model says a plan takes, and the plan of the least, of those that can run.
double predict_seconds(const Plan& plan, int tokens, int in_features, int out_features, int size,
                       bool sparse, int multiprocessors);
Plan choose_plan(int tokens, int in_features, int out_features, int size, bool sparse,
                 int multiprocessors, const Convolution* convolution = nullptr);

}  // namespace sparse24
