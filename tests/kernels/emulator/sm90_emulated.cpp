// The Hopper kernel's own sources on the emulator for one type and form, and the door for ctypes.
//
// EMULATED_TYPE and EMULATED_SPARSE say which, bit i of EMULATED_TILES that config.h's tile i is there.
#include "sm90_ptx.h"

#include "sm90_launch.cuh"

namespace sparse24 {
alignas(1024) uint8_t shared[sizeof(shared)];

template <int kTile>
const char* emulated_tile(const Gemm& gemm, const Plan& plan, int multiprocessors) {
  if constexpr ((EMULATED_TILES >> kTile & 1) != 0) {
    if constexpr (kTiles[kTile].takes(size_of(Type::EMULATED_TYPE))) {
      return sm90_launch<Sm90Shape<Type::EMULATED_TYPE, EMULATED_SPARSE, kTile>>(gemm, plan, multiprocessors);
    } else {
      return "this tile is for 16-bit types";
    }
  }
  return "this tile was not compiled for the emulator";
}

template <int... kTile>
const char* emulated(std::integer_sequence<int, kTile...>, const Gemm& gemm, const Plan& plan,
                     int multiprocessors) {
  const char* result = "there is no tile of this number";
  ((plan.tile == kTile ? void(result = emulated_tile<kTile>(gemm, plan, multiprocessors)) : void()), ...);
  return result;
}
}  // namespace sparse24

extern "C" {

// `readable`: where x and the weight begin and end, begin, end, begin, end.
const char* emulated_sm90(const sparse24::Gemm* gemm, int64_t plan, int multiprocessors, int copies_are_late,
                          int last_warp_first, const uint8_t* const* readable) {
  emulator::settings = {copies_are_late, last_warp_first, 90, 227 * 1024,
                        {{readable[0], readable[1]}, {readable[2], readable[3]}}};
  emulator::bank_conflicts = 0;
  return sparse24::emulated(std::make_integer_sequence<int, sparse24::kTileCount>(), *gemm,
                            sparse24::Plan::of(plan), multiprocessors);
}
int emulator_bank_conflicts() { return emulator::bank_conflicts; }

}  // extern "C"
