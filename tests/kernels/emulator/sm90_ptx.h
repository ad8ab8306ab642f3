// In place of ptx.h: the same functions, by what the PTX manual says of each instruction.
#pragma once
#define SPARSE24_PTX
#include <cuda.h>

#include "sm90_copies.h"
#include "sm90_state.h"
#include "sm90_wgmma.h"

namespace sparse24 {

inline uint32_t shared_address(const void* pointer) { return __cvta_generic_to_shared(pointer); }
// Which lane it is, is not said anywhere.
inline bool elect_one() {
  return emulator::current % 32 == (emulator::settings.last_warp_first ? 31 : 0);
}

inline void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  emulator::require_shared(barrier, 8, 8, "an mbarrier is unaligned or outside shared memory");
  emulator::hopper_block().mbarriers[barrier] = {arrivals, arrivals};
}
inline void fence_mbarrier_init() {
  for (auto& [at, barrier] : emulator::hopper_block().mbarriers) barrier.is_visible = true;
}
inline void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  emulator::Mbarrier& here = emulator::mbarrier_at(emulator::rank, barrier);
  emulator::expect_bytes(here, bytes);
  emulator::arrive(here);
}
inline void mbarrier_arrive(uint32_t barrier) {
  emulator::arrive(emulator::mbarrier_at(emulator::rank, barrier));
}
// A rank above the 24 bits of an address, plus one, so that no address is 0.
inline uint32_t shared_address_in(uint32_t at, uint32_t rank) { return at | rank + 1 << 24; }
inline void mbarrier_arrive_cluster(uint32_t barrier) {
  emulator::arrive(emulator::mbarrier_at((barrier >> 24) - 1, barrier & 0xffffff));
}
inline void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  const emulator::Mbarrier& here = emulator::mbarrier_at(emulator::rank, barrier);
  emulator::wait_until("an mbarrier", [&here, parity] { return (here.phase & 1) != parity; });
}

inline void copy_bulk(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  emulator::copy_bytes(to, from, bytes, barrier, 1 << emulator::rank);
}
inline void copy_bulk_multicast(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier,
                                uint16_t mask) {
  emulator::copy_bytes(to, from, bytes, barrier, mask);
}
inline void prefetch_tensor_map(const CUtensorMap*) {}
inline void copy_tensor_2d(uint32_t to, const CUtensorMap* map, int x, int y, uint32_t barrier) {
  emulator::copy_box(to, *map, x, y, barrier, 1 << emulator::rank);
}
inline void copy_tensor_2d_multicast(uint32_t to, const CUtensorMap* map, int x, int y, uint32_t barrier,
                                     uint16_t mask) {
  emulator::copy_box(to, *map, x, y, barrier, mask);
}
inline void copy_tensor_im2col(uint32_t to, const CUtensorMap* map, int c, int w, int h, int n, uint16_t s,
                               uint16_t r, uint32_t barrier) {
  emulator::copy_pixels(to, *map, c, {w, h, n}, s, r, barrier);
}
inline void copy_tensor_4d(uint32_t to, const CUtensorMap* map, int c, int w, int h, int n, uint32_t barrier) {
  emulator::copy_images(to, *map, c, {w, h, n}, barrier);
}
inline void store_tensor_4d(const CUtensorMap* map, uint32_t from, int c, int w, int h, int n) {
  emulator::store_images(*map, from, c, {w, h, n});
}
inline void store_tensor_2d(const CUtensorMap* map, uint32_t from, int x, int y) {
  emulator::store_box(*map, from, x, y);
}
inline void bulk_commit_group() { emulator::commit_group(); }
template <int kLeft>
void bulk_wait_group_read() {
  emulator::wait_group(kLeft);
}
inline void bulk_wait_group() { emulator::wait_group(0); }
inline void fence_proxy_async() { emulator::fence_proxy(); }

inline uint32_t cluster_rank() { return emulator::rank; }
inline uint32_t cluster_blocks() { return static_cast<uint32_t>(emulator::cluster.size()); }
inline void cluster_sync() { emulator::cluster_barrier(); }
inline void wait_for_kernel_before() {
  emulator::hopper_block().has_waited_for_kernel_before[emulator::current] = true;
}
inline void let_next_kernel_start() {}
inline void named_barrier(int id, int threads) { emulator::meet(id, threads); }
template <int kRegisters>
void setmaxnreg_increase() {}
template <int kRegisters>
void setmaxnreg_decrease() {}

template <int kCount>
void stmatrix_trans(uint32_t to, const uint32_t (&words)[kCount]) {
  emulator::store_matrices(to, words, kCount);
}
template <int kCount>
void ldmatrix_trans(uint32_t from, uint32_t (&words)[kCount]) {
  emulator::load_matrices(from, words, kCount);
}
inline uint32_t load_global(const float* from) {
  uint32_t word;
  std::memcpy(&word, from, 4);
  return word;
}
inline uint32_t load_global_16(const uint16_t* from) { return *from; }
inline uint32_t load_shared(uint32_t from) {
  emulator::require_shared(from, 4, 4, "ld.shared is unaligned or outside shared memory");
  uint32_t word;
  std::memcpy(&word, emulator::shared + from, 4);
  return word;
}
inline uint2 load_shared_2(uint32_t from) {
  emulator::require_shared(from, 8, 8, "ld.shared is unaligned or outside shared memory");
  uint2 words;
  std::memcpy(&words, emulator::shared + from, 8);
  return words;
}

}  // namespace sparse24
