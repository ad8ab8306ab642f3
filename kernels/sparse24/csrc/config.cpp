// The cost model: what feeds the tensor cores of one multiprocessor, and how tiles fill the chip.
#include "config.h"

namespace sparse24 {
namespace {

constexpr double kClock = 1.9e9;            // Hz of a card that is not hot yet; choosing needs ratios alone
constexpr double kSharedBytesPerClock = 134;  // the port that operands, fills and stores share
constexpr double kFillBytesPerClock = 45;   // that copies bring, shared over a cluster or not
constexpr double kLaunchSeconds = 3e-6;
constexpr double kTileClocks = 1300;        // to the last product's end and the first part's store
constexpr double kSumClocks = 8;             // of finishing one sum of each thread
constexpr double kWideClocks = 4500;        // more of a tile whose sums leave few registers
constexpr double kClusterFactor = 1.08;     // of the main loop where blocks wait for each other
constexpr double kTurnClocks = 200;         // from one warpgroup's last product to the other's first

}  // namespace

double predict_seconds(const Plan& plan, int tokens, int in_features, int out_features, int size,
                       bool sparse, int multiprocessors) {
  const Tile tile = kTiles[plan.tile];
  const int blocks = plan.cluster_m * plan.cluster_n;
  const int k_blocks = ceil_div(in_features, block_k(size));
  // One wgmma takes 64 rows by 32 stored bytes of weight and the tokens' bytes that they meet; it
  // issues in half a clock for each token.
  const int steps = sparse ? 2 : 4;
  const double operands = tile.tokens * (128.0 / steps) + 64 * 32;
  const double issue = tile.tokens / 2.0;
  const double weight_bytes = tile.is_window ? 0 : block_bytes(size, sparse) * (tile.rows() / 64.0);
  // of nine blocks of K, a window's tokens are copied once, with what lies around them; its weight stays
  const double token_bytes = tile.tokens * 128.0 * (tile.is_window ? 0.2 : 1.0);
  const int products = tile.rows() / 64 * steps;
  const double port = (products * operands + weight_bytes + token_bytes) / kSharedBytesPerClock;
  const double fill = (weight_bytes + token_bytes) / kFillBytesPerClock;
  double clocks = products * issue;
  if (port > clocks) clocks = port;
  if (fill > clocks) clocks = fill;
  if (blocks > 1) clocks *= kClusterFactor;
  const double stores = tile.rows() * tile.tokens * 2 * 2 / kSharedBytesPerClock;  // in and out of staging
  const double main = k_blocks * clocks + stores;
  double finish = kTileClocks + kSumClocks * tile.row_steps * tile.tokens / 2;
  if (tile.is_wide()) finish += kWideClocks;
  double tile_clocks = main + finish;
  if (tile.by_turns) {  // one warpgroup finishes while the other multiplies
    tile_clocks = main + kTurnClocks;
    if ((main + finish) / 2 > tile_clocks) tile_clocks = (main + finish) / 2;
  }
  const int tiles = ceil_div(ceil_div(out_features, tile.rows()), plan.cluster_m) *
                    ceil_div(ceil_div(tokens, tile.tokens), plan.cluster_n);
  return ceil_div(tiles, multiprocessors / blocks) * tile_clocks / kClock + kLaunchSeconds;
}

Plan choose_plan(int tokens, int in_features, int out_features, int size, bool sparse,
                 int multiprocessors, const Convolution* convolution) {
  constexpr int kClusters[][2] = {{1, 1}, {2, 1}, {1, 2}};
  Plan best = {};
  double least = 0;
  for (int tile = 0; tile < kTileCount; ++tile) {
    if (!kTiles[tile].takes(size)) continue;
    int met = tokens;  // with those of a window that are no pixels
    if (kTiles[tile].is_window) {
      if (convolution == nullptr) continue;
      const Window window = Window::of(*convolution, kTiles[tile].tokens, size);
      if (window.rows == 0) continue;
      met = convolution->batch * window.tiles * kTiles[tile].tokens;
    }
    if (convolution != nullptr && convolution->groups > 1 &&
        out_features / convolution->groups % kTiles[tile].rows() != 0) {
      continue;
    }
    for (const auto& cluster : kClusters) {
      if (cluster[0] * cluster[1] > 1 && !kTiles[tile].shares()) continue;
      if (cluster[0] > 1 && convolution != nullptr) continue;
      if (cluster[0] > 1 && out_features <= kTiles[tile].rows()) continue;
      if (cluster[1] > 1 && tokens <= kTiles[tile].tokens) continue;
      // strips whose width divides the multiprocessors of an H100: a block keeps a window's weight
      const int raster = kTiles[tile].is_window ? 4 : 8 / cluster[0];
      const Plan plan = {tile, cluster[0], cluster[1], raster};
      const double seconds =
          predict_seconds(plan, met, in_features, out_features, size, sparse, multiprocessors);
      if (least == 0 || seconds < least) {
        best = plan;
        least = seconds;
      }
    }
  }
  return best;
}

}  // namespace sparse24
