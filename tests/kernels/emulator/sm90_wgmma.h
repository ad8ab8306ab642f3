// In place of wgmma.h's instructions, and of ptx.h's around them.
#pragma once
#define SPARSE24_WGMMA
#include "sm90_state.h"

namespace emulator {
// Each by all lanes of a warp.
void issue(const Product& product, void* sums, uint32_t metadata);  // sums and metadata: the lane's
void fence_products();
void commit_products();
void wait_products(int left);
}  // namespace emulator

namespace sparse24 {

template <Type kType, bool kSparse, int kTokens>
struct Wgmma {
  template <int kSelector, class Sum>
  static void issue(Sum (&d)[kTokens / 2], uint64_t a, uint64_t b, uint32_t metadata, int accumulate) {
    static_assert(kSparse && (kSelector == 0 || (kSelector == 1 && size_of(kType) == 2)));
    emulator::issue({kType, true, kTokens, kSelector, accumulate, a, b}, d, metadata);
  }
  template <class Sum>
  static void issue(Sum (&d)[kTokens / 2], uint64_t a, uint64_t b, int accumulate) {
    static_assert(!kSparse);
    emulator::issue({kType, false, kTokens, 0, accumulate, a, b}, d, 0);
  }
};

inline void wgmma_fence() { emulator::fence_products(); }
inline void wgmma_commit_group() { emulator::commit_products(); }
template <int kLeft>
void wgmma_wait_group() {
  emulator::wait_products(kLeft);
}

}  // namespace sparse24
