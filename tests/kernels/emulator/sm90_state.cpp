// mbarriers, clusters, proxies and matrices of the emulated Hopper kernel.
#include "sm90_state.h"

namespace emulator {

namespace {

std::vector<HopperBlock> blocks;
int arrived_at_cluster;
uint64_t cluster_generation;

void begin() {
  blocks.assign(cluster.size(), HopperBlock{});
  arrived_at_cluster = 0;
  for (HopperBlock& block : blocks) {
    const size_t threads = cluster[0].threads.size();
    block.products.resize(threads / 32);
    block.issued.resize((threads + 127) / 128);
    block.compared.resize(threads / 32);
    block.written.assign(sizeof(shared) / 16, Written{});
    block.matrices_stored.resize(threads / 32);
    block.fenced.resize(threads);
    block.has_waited_for_kernel_before.resize(threads);
  }
}

// What must not be left when a block's shared memory goes.
void end() {
  if (!late.empty()) fail("a copy is under way when its block ends");
  for (size_t i = 0; i < blocks.size(); ++i) {
    for (const Thread& thread : cluster[i].threads) {
      for (const auto& group : thread.groups) {
        if (!group.empty()) fail("a store is under way when its block ends");
      }
    }
    for (const auto& [at, barrier] : blocks[i].mbarriers) {
      if (barrier.bytes != 0) fail("an mbarrier waits for bytes when its block ends");
    }
    for (size_t warp = 0; warp < blocks[i].products.size(); ++warp) {
      for (const auto& group : blocks[i].products[warp].groups) {
        if (!group.empty()) fail("a wgmma is under way when its block ends");
      }
      if (blocks[i].compared[warp] != blocks[i].issued[warp / 4].size()) {
        fail("a warp issued fewer wgmmas than its warpgroup");
      }
    }
  }
}

const bool is_registered = [] {
  on_new_cluster(begin);
  on_end_of_cluster(end);
  return true;
}();

struct Matrices {
  uint32_t at;
  uint32_t* words;
};

// Counts the banks that the rows of the `matrix`-th 8x8 matrix share, and checks their addresses.
void check_rows(Matrices** lanes, int matrix) {
  unsigned banks = 0;
  for (int row = 0; row < 8; ++row) {
    const uint32_t at = lanes[8 * matrix + row]->at;
    require_shared(at, 16, 16, "a matrix's row is unaligned or outside shared memory");
    banks |= 1u << at / 16 % 8;
  }
  bank_conflicts += 8 - __builtin_popcount(banks);
}

// Moves the element of row 2 * (lane % 4) + i and column lane / 4, which is the lane's i-th.
template <bool kStores>
void move_transposed(Matrices** lanes, int matrix) {
  check_rows(lanes, matrix);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 2; ++i) {
      uint8_t* in_shared = shared + lanes[8 * matrix + 2 * (lane % 4) + i]->at + 2 * (lane / 4);
      uint8_t* in_register = reinterpret_cast<uint8_t*>(&lanes[lane]->words[matrix]) + 2 * i;
      std::memcpy(kStores ? in_shared : in_register, kStores ? in_register : in_shared, 2);
    }
  }
}

}  // namespace

HopperBlock& hopper_block(int of_rank) { return blocks[of_rank]; }

Mbarrier& mbarrier_at(int of_rank, uint32_t address) {
  if (of_rank < 0 || of_rank >= static_cast<int>(blocks.size())) fail("the cluster has no such block");
  if (of_rank != rank && cluster[of_rank].is_done()) fail("a block of the cluster ended too early");
  const auto found = blocks[of_rank].mbarriers.find(address);
  if (found == blocks[of_rank].mbarriers.end()) fail("there is no mbarrier at this address");
  if (!found->second.is_visible) fail("an mbarrier is used before the fence of its init");
  return found->second;
}
static void settle(Mbarrier& barrier) {
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  barrier.missing = barrier.arrivals;
  ++barrier.phase;
}
void arrive(Mbarrier& barrier) {
  if (barrier.missing == 0) fail("more arrivals at an mbarrier than it was made for");
  --barrier.missing;
  settle(barrier);
}
void expect_bytes(Mbarrier& barrier, int64_t bytes) {
  barrier.bytes += bytes;
  if (std::abs(barrier.bytes) >= 1 << 20) fail("an mbarrier of more than 2^20 - 1 bytes");
  if (bytes < 0) settle(barrier);
}

void require_shared(uint32_t at, int bytes, int alignment, const char* otherwise) {
  if (at % alignment != 0 || int64_t{at} + bytes > settings.shared_limit) fail(otherwise);
}

void require_fenced(uint32_t at, int bytes) {
  const HopperBlock& block = hopper_block();
  for (uint32_t chunk = at / 16; chunk < (at + bytes + 15) / 16; ++chunk) {
    const Written& last = block.written[chunk];
    if (last.number == 0) continue;
    for (int lane = 0; lane < 32; ++lane) {
      if (block.fenced[32 * last.warp + lane] < last.number) {
        fail("the copy engine is given shared memory that was written without a proxy fence behind");
      }
    }
  }
}
void require_kernel_before() {
  if (!hopper_block().has_waited_for_kernel_before[current]) {
    fail("a copy by a thread that has not waited for the kernel before");
  }
}

void store_matrices(uint32_t to, const uint32_t* words, int count) {
  Matrices mine = {to, const_cast<uint32_t*>(words)};
  collective("stmatrix", mine, [count](Matrices** lanes) {
    HopperBlock& block = hopper_block();
    const uint32_t number = ++block.matrices_stored[current / 32];
    for (int matrix = 0; matrix < count; ++matrix) {
      move_transposed<true>(lanes, matrix);
      for (int row = 0; row < 8; ++row) {
        block.written[lanes[8 * matrix + row]->at / 16] = {current / 32, number};
      }
    }
  });
}
void load_matrices(uint32_t from, uint32_t* words, int count) {
  Matrices mine = {from, words};
  collective("ldmatrix", mine, [count](Matrices** lanes) {
    for (int matrix = 0; matrix < count; ++matrix) move_transposed<false>(lanes, matrix);
  });
}
void fence_proxy() {
  HopperBlock& block = hopper_block();
  block.fenced[current] = block.matrices_stored[current / 32];
}

void cluster_barrier() {
  if (++arrived_at_cluster == static_cast<int>(cluster.size() * cluster[0].threads.size())) {
    arrived_at_cluster = 0;
    ++cluster_generation;
    return;
  }
  const uint64_t generation = cluster_generation;
  wait_until("its cluster", [=] { return cluster_generation != generation; });
}

}  // namespace emulator
