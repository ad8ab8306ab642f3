// What a block of the Hopper kernel has beyond its threads: mbarriers, products and copies under way.
#pragma once
#include <cstdint>
#include <map>
#include <vector>

#include "cuda.h"
#include "gemm.h"

namespace emulator {

struct Mbarrier {
  uint32_t arrivals, missing;  // of a phase
  int64_t bytes = 0;           // that this phase still waits for
  uint64_t phase = 0;
  bool is_visible = false;  // beyond the thread that made it
};

// One warp's 16 rows of a wgmma, which happen as soon as they are committed, or when the warp waits
// for them, as late as they may: as the copies do.
struct Product {
  sparse24::Type type;
  bool is_sparse;
  int tokens, selector, accumulate;
  uint64_t a, b;
  void* sums[32];
  uint32_t metadata[32];
};
struct Products {
  std::vector<std::vector<Product>> groups;  // committed, then the open one
  int issued[32] = {};  // by each lane, of the open group
  bool is_fenced = false;
};

// The generic proxy's last write of 16 bytes: the warp, and the number of its stmatrix; none: 0.
struct Written {
  int warp;
  uint32_t number;
};

struct HopperBlock {
  std::map<uint32_t, Mbarrier> mbarriers;
  std::vector<Products> products;                    // of each warp
  std::vector<std::vector<uint64_t>> issued;         // of each warpgroup: the operands of its wgmmas
  std::vector<uint32_t> compared;                    // of each warp: how many of those it has issued
  std::vector<Written> written;                      // of each 16 bytes of shared memory
  std::vector<uint32_t> matrices_stored;             // of each warp
  std::vector<uint32_t> fenced;                      // of each thread: its warp's matrices_stored then
  std::vector<char> has_waited_for_kernel_before;    // each thread
};

HopperBlock& hopper_block(int of_rank);
inline HopperBlock& hopper_block() { return hopper_block(rank); }

Mbarrier& mbarrier_at(int of_rank, uint32_t address);
void arrive(Mbarrier& barrier);
void expect_bytes(Mbarrier& barrier, int64_t bytes);  // negative: they came

void require_shared(uint32_t at, int bytes, int alignment, const char* otherwise);
// Fails if the async proxy would not see what threads wrote there.
void require_fenced(uint32_t at, int bytes);
void require_kernel_before();

// 8x8 matrices of 16-bit elements, transposed, `count` to a lane.
void store_matrices(uint32_t to, const uint32_t* words, int count);
void load_matrices(uint32_t from, uint32_t* words, int count);
void fence_proxy();
void cluster_barrier();

}  // namespace emulator
