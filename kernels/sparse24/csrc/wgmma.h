// wgmma.mma_async, dense and 2:4 sparse, of 64 rows by kTokens columns by 32 bytes of stored K.
#pragma once
#include <cstdint>

#include "gemm.h"

namespace sparse24 {

// Accumulator of a type: fp32, of int8 int32.
template <Type kType>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<Type::s8> {
  using type = int;
};

// d (+)= a . b; the first product of a tile has accumulate = 0. `kSelector` says which lanes of a
// 16-bit type's metadata word hold this step's; 8-bit types allow 0 only.
template <Type kType, bool kSparse, int kTokens>
struct Wgmma;

#ifndef SPARSE24_WGMMA  // the emulator in tests/kernels takes the place of what follows
#define S24_REGS_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define S24_REGS_16 S24_REGS_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define S24_REGS_32 \
  S24_REGS_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define S24_REGS_48 \
  S24_REGS_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define S24_REGS_64 \
  S24_REGS_48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define S24_REGS_96                                                                 \
  S24_REGS_64                                                                       \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83" \
  ",%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define S24_REGS_128                                                                     \
  S24_REGS_96                                                                            \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113" \
  ",%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

#define S24_OPS_8(c, i)                                                                     \
  c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]),     \
      c(d[i + 7])
#define S24_OPS_16(c, i) S24_OPS_8(c, i), S24_OPS_8(c, i + 8)
#define S24_OPS_32(c, i) S24_OPS_16(c, i), S24_OPS_16(c, i + 16)
#define S24_OPS_48(c, i) S24_OPS_32(c, i), S24_OPS_16(c, i + 32)
#define S24_OPS_64(c, i) S24_OPS_32(c, i), S24_OPS_32(c, i + 32)
#define S24_OPS_96(c, i) S24_OPS_64(c, i), S24_OPS_32(c, i + 64)
#define S24_OPS_128(c, i) S24_OPS_64(c, i), S24_OPS_64(c, i + 64)

// a, b, accumulate, metadata, selector: the numbers of the operands after the accumulators
#define S24_SPARSE(TYPE, ACC, C, N, REGS, SHAPE, A, B, S, M, L, TAIL)                          \
  template <>                                                                                  \
  struct Wgmma<Type::TYPE, true, N> {                                                          \
    template <int kSelector>                                                                   \
    static __device__ __forceinline__ void issue(ACC (&d)[N / 2], uint64_t a, uint64_t b,      \
                                                 uint32_t metadata, int accumulate) {          \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, " S ", 0;"                                  \
                   " wgmma.mma_async.sp.sync.aligned.m64n" #N SHAPE " {" S24_REGS_##REGS "}, " A \
                   ", " B ", " M ", " L ", p" TAIL "; }"                                       \
                   : S24_OPS_##REGS(C, 0)                                                      \
                   : "l"(a), "l"(b), "r"(accumulate), "r"(metadata), "n"(kSelector));          \
    }                                                                                          \
  };
#define S24_DENSE(TYPE, ACC, C, N, REGS, SHAPE, A, B, S, TAIL)                                 \
  template <>                                                                                  \
  struct Wgmma<Type::TYPE, false, N> {                                                         \
    static __device__ __forceinline__ void issue(ACC (&d)[N / 2], uint64_t a, uint64_t b,      \
                                                 int accumulate) {                             \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, " S ", 0;"                                  \
                   " wgmma.mma_async.sync.aligned.m64n" #N SHAPE " {" S24_REGS_##REGS "}, " A  \
                   ", " B ", p" TAIL "; }"                                                     \
                   : S24_OPS_##REGS(C, 0)                                                      \
                   : "l"(a), "l"(b), "r"(accumulate));                                         \
    }                                                                                          \
  };
#define S24_F(x) "+f"(x)
#define S24_R(x) "+r"(x)
#define S24_WGMMA(N, REGS, A, B, S, M, L)                                                       \
  S24_SPARSE(f16, float, S24_F, N, REGS, "k32.f32.f16.f16", A, B, S, M, L, ", 1, 1, 0, 0")      \
  S24_SPARSE(bf16, float, S24_F, N, REGS, "k32.f32.bf16.bf16", A, B, S, M, L, ", 1, 1, 0, 0")   \
  S24_SPARSE(e4m3, float, S24_F, N, REGS, "k64.f32.e4m3.e4m3", A, B, S, M, L, ", 1, 1")         \
  S24_SPARSE(s8, int, S24_R, N, REGS, "k64.s32.s8.s8", A, B, S, M, L, "")                       \
  S24_DENSE(f16, float, S24_F, N, REGS, "k16.f32.f16.f16", A, B, S, ", 1, 1, 0, 0")             \
  S24_DENSE(bf16, float, S24_F, N, REGS, "k16.f32.bf16.bf16", A, B, S, ", 1, 1, 0, 0")          \
  S24_DENSE(e4m3, float, S24_F, N, REGS, "k32.f32.e4m3.e4m3", A, B, S, ", 1, 1")                \
  S24_DENSE(s8, int, S24_R, N, REGS, "k32.s32.s8.s8", A, B, S, "")

S24_WGMMA(16, 8, "%8", "%9", "%10", "%11", "%12")
S24_WGMMA(64, 32, "%32", "%33", "%34", "%35", "%36")
S24_WGMMA(128, 64, "%64", "%65", "%66", "%67", "%68")
S24_WGMMA(192, 96, "%96", "%97", "%98", "%99", "%100")
S24_WGMMA(256, 128, "%128", "%129", "%130", "%131", "%132")
#endif  // SPARSE24_WGMMA

}  // namespace sparse24
