/* One small vocabulary of vectors; every kernel is written once, on top of it.
 *
 * LANES 32-bit numbers lie in a vector. An `ints` is a vector of int32, a `floats` of float32.
 * `sums` accumulate products of bytes: for each lane, `sums_add` adds the four products of an
 * `activation` (four stored bytes a lane) and a `weight` (four int8 a lane); `sums_add_two` does so
 * for two of each, which some processors do in fewer steps. All sets of instructions give the same
 * integers; floats may differ where one of them has no fused multiply-add.
 *
 * TILE_POSITIONS and TILE_BLOCKS are how many positions of a row, or blocks of 16 channels, are
 * summed at once: as many as there are registers for; GROUPS is how many groups of four bytes go
 * into one step. TILE_VECTORS and TILE_CHANNELS are the same for lanes along a row.
 */
#ifndef VECTOR_H
#define VECTOR_H

#include "runner.h"

#include <math.h>
#include <string.h>

/* The dot product is asked for here, since compilers name it differently; vector_end.h ends it. */
#if defined(VECTOR_DOTPROD) && defined(__clang__)
#include <arm_neon.h>
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#elif defined(VECTOR_DOTPROD)
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#define INLINE static inline __attribute__((always_inline, unused))
#define COLD static __attribute__((noinline, unused))
/* Loops over what lies in registers must be unrolled, or it does not; others need not be. Where that
 * does not matter, as under a sanitizer, -DUNROLL= makes compiling much faster. */
#if defined(__clang__)
#define ROLLED _Pragma("clang loop unroll(disable)")
#define FULLY _Pragma("clang loop unroll(full)")
#define SOME _Pragma("clang loop unroll_count(4)")
#else
#define ROLLED _Pragma("GCC unroll 1")
#define FULLY _Pragma("GCC unroll 64")
#define SOME _Pragma("GCC unroll 4")
#endif
#if !defined(UNROLL) && (defined(VECTOR_AVX512) || defined(VECTOR_AVX2) || defined(VECTOR_NEON) || \
                         defined(VECTOR_DOTPROD))
#define UNROLL FULLY
#elif !defined(UNROLL) /* no registers to fill: small code is better */
#define UNROLL
#endif
#if !defined(__x86_64__) /* small code, and a loop's end costs next to nothing */
#undef SOME
#define SOME ROLLED
#endif
/* What is read through a pointer after this is read again. Compilers would rather carry what
 * windows have in common from one to the next, and run out of registers. */
#define OPAQUE(pointer) __asm__("" : "+r"(pointer))

/* How sums become stored bytes: in steps less the zero point, between two bounds, halves to even.
 * The bounds are integers, so that clamping first changes nothing, and no number is too large. */
struct rounding {
    int zero_point;
    float low, high;
};

/* Adding and taking away 1.5 * 2^23 leaves the nearest integer, halves to even. */
#define ROUNDING_NUMBER 0x1.8p23f

/* A stored byte as the number that sums are of: q, or q + 128. */
INLINE int stored_number(unsigned char stored)
{
    return FLIP ? stored : (int8_t)stored;
}

#if defined(VECTOR_AVX512)
#include "vector_avx512.h"
#elif defined(VECTOR_AVX2)
#include "vector_avx2.h"
#elif defined(VECTOR_NEON) || defined(VECTOR_DOTPROD)
#include "vector_neon.h"
#else
#include "vector_portable.h"
#endif

/* The weights of some channels, four bytes each, of which one is used for all lanes. Here they are
 * read one by one. */
#ifndef SEVERAL
typedef const int8_t *several;

INLINE several several_load(const int8_t *from)
{
    return from;
}

INLINE void sums_add_one(sums *to, activation a, several s, int channel)
{
    sums_add(to, a, weight_all(s + 4 * channel));
}

INLINE void sums_add_ones(sums *to, activation a, several s, activation b, several t, int channel)
{
    sums_add_two(to, a, weight_all(s + 4 * channel), b, weight_all(t + 4 * channel));
}
#endif

#endif
