// In place of sm80_ptx.cuh: the same functions, by what the PTX manual says of each instruction.
#pragma once
#define SPARSE24_SM80_PTX
#include "cuda.h"
#include "values.h"

namespace sparse24 {

inline uint32_t to_shared(const void* pointer) { return __cvta_generic_to_shared(pointer); }

inline void cp_async(uint32_t to, const void* from, int bytes) {
  using namespace emulator;
  if (to % 16 != 0 || to + 16 > sizeof(shared)) fail("cp.async writes where it cannot");
  if (bytes < 0 || bytes > 16) fail("cp.async of other than 0 to 16 bytes");
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) fail("cp.async from an unaligned address");
  if (!is_readable(from, bytes)) fail("cp.async reads outside x and the weight");
  start_copy([=] {
    std::memset(shared + to, 0, 16);
    if (bytes > 0) std::memcpy(shared + to, from, bytes);
  });
}
inline void cp_async_commit_group() { emulator::commit_group(); }
template <int kLeft>
void cp_async_wait_group() {
  emulator::wait_group(kLeft);
}

inline void ldmatrix_x4(uint32_t (&out)[4], uint32_t from) {
  struct Slot {
    uint32_t from;
    uint32_t* out;
  } mine = {from, out};
  emulator::collective("ldmatrix", mine, [](Slot** lanes) {
    for (int i = 0; i < 4; ++i) {
      unsigned banks = 0;
      for (int row = 0; row < 8; ++row) {
        if (lanes[8 * i + row]->from % 16 != 0) emulator::fail("ldmatrix of an unaligned row");
        banks |= 1u << lanes[8 * i + row]->from / 16 % 8;
      }
      emulator::bank_conflicts += 8 - __builtin_popcount(banks);
      for (int lane = 0; lane < 32; ++lane) {
        std::memcpy(&lanes[lane]->out[i], emulator::shared + lanes[8 * i + lane / 4]->from + 4 * (lane % 4), 4);
      }
    }
  });
}

// Fragments of a warp: `word(lane, register)` holds 4 bytes of a row along K. Row r of A lies with the
// lanes 4 * (r % 8) and on, 16 bytes of it in the registers r / 8 and r / 8 + 2; column n of B with
// the lanes 4 * n and on, 16 bytes of it in each register.
template <class Sum>
struct Mma {
  Sum* d;
  const uint32_t* a;
  uint32_t b[4];
  uint32_t e;
};
template <Type kType, class Sum>
double value_of_a(Mma<Sum>** lanes, int row, int element) {
  const int byte = element * size_of(kType);
  return value_at<kType>(&lanes[4 * (row % 8) + byte % 16 / 4]->a[row / 8 + 2 * (byte / 16)], byte % 4);
}
template <Type kType, class Sum>
double value_of_b(Mma<Sum>** lanes, int column, int element) {
  const int byte = element * size_of(kType);
  return value_at<kType>(&lanes[4 * column + byte % 16 / 4]->b[byte / 16], byte % 4);
}
template <class Sum, class Product>
void accumulate(Mma<Sum>** lanes, Product product) {
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      lanes[4 * (row % 8) + column / 2]->d[row / 8 * 2 + column % 2] += static_cast<Sum>(product(row, column));
    }
  }
}

template <Type kType, class Sum>
void mma(Sum (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Mma<Sum> mine = {d, a, {b0, b1, 0, 0}, 0};
  emulator::collective("mma", mine, [](Mma<Sum>** lanes) {
    accumulate(lanes, [&](int row, int column) {
      double sum = 0;
      for (int i = 0; i < 32 / size_of(kType); ++i) {
        sum += value_of_a<kType>(lanes, row, i) * value_of_b<kType>(lanes, column, i);
      }
      return sum;
    });
  });
}

template <Type kType, int kSelector, class Sum>
void mma_sp(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t e) {
  Mma<Sum> mine = {d, a, {b[0], b[1], b[2], b[3]}, e};
  emulator::collective("mma.sp", mine, [](Mma<Sum>** lanes) {
    accumulate(lanes, [&](int row, int column) {
      double sum = 0;
      for (int group = 0; group < 16 / size_of(kType); ++group) {
        const uint32_t nibble = nibble_of([&](int lane) { return lanes[4 * (row % 8) + lane]->e; },
                                          size_of(kType), kSelector, row / 8, group);
        const int kept[] = {static_cast<int>(nibble & 3), static_cast<int>(nibble >> 2)};
        for (int i = 0; i < 2; ++i) {
          const double value = value_of_a<kType>(lanes, row, 2 * group + i);
          if (value != 0 && kept[0] >= kept[1]) emulator::fail("mma.sp of unordered metadata");
          sum += value * value_of_b<kType>(lanes, column, 4 * group + kept[i]);
        }
      }
      return sum;
    });
  });
}

}  // namespace sparse24
