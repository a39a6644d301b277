/* Vectors of AVX-512 with VNNI: 16 lanes. See vector.h. */
#ifndef VECTOR_AVX512_H
#define VECTOR_AVX512_H

#include <immintrin.h>

#define LANES 16
#define GROUPS 2
#define TILE_POSITIONS 10
#define TILE_BLOCKS 8
#define TILE_VECTORS 2
#define TILE_CHANNELS 6
#define FLOAT_POSITIONS 10
#define FLOAT_BLOCKS 8
#define FLOAT_VECTORS 2
#define FLOAT_CHANNELS 6

typedef __m512i ints;
typedef __m512 floats;
typedef __m512i sums;
typedef __m512i activation;
typedef __m512i weight;

INLINE sums sums_zero(void)
{
    return _mm512_setzero_si512();
}

INLINE activation activation_all(const unsigned char *four)
{
    int bytes;
    memcpy(&bytes, four, sizeof bytes);
    return _mm512_set1_epi32(bytes);
}

/* Lane i has the four bytes from `row` + i on. */
INLINE activation activation_windows(const unsigned char *row)
{
    const __m512i words = _mm512_setr_epi32(0, 1, 0, 0, 1, 2, 0, 0, 2, 3, 0, 0, 3, 4, 0, 0);
    const __m512i places = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6));
    __m512i bytes = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)row));
    return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(words, bytes), places);
}

INLINE weight weight_load(const int8_t *from)
{
    return _mm512_loadu_si512(from);
}

INLINE weight weight_all(const int8_t *four)
{
    int bytes;
    memcpy(&bytes, four, sizeof bytes);
    return _mm512_set1_epi32(bytes);
}

/* By hand: gcc copies what the intrinsic accumulates from register to register. */
INLINE void sums_add(sums *to, activation a, weight w)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*to) : "v"(a), "v"(w));
}

INLINE void sums_add_two(sums *to, activation a, weight w, activation b, weight v)
{
    sums_add(to, a, w);
    sums_add(to, b, v);
}

INLINE ints ints_of(sums from)
{
    return from;
}

INLINE ints ints_load(const int32_t *from)
{
    return _mm512_loadu_si512(from);
}

INLINE ints ints_all(int32_t value)
{
    return _mm512_set1_epi32(value);
}

INLINE ints ints_add(ints a, ints b)
{
    return _mm512_add_epi32(a, b);
}

INLINE ints ints_max(ints a, ints b)
{
    return _mm512_max_epi32(a, b);
}

INLINE floats floats_load(const float *from)
{
    return _mm512_loadu_ps(from);
}

INLINE floats floats_all(float value)
{
    return _mm512_set1_ps(value);
}

INLINE void floats_add_product(floats *to, floats a, floats b)
{
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(*to) : "v"(a), "v"(b));
}

INLINE floats floats_add(floats a, floats b)
{
    return _mm512_add_ps(a, b);
}

INLINE floats floats_max(floats a, floats b)
{
    return _mm512_max_ps(a, b);
}

INLINE floats floats_min(floats a, floats b)
{
    return _mm512_min_ps(a, b);
}

/* The larger of each two neighbours, of a, then of b. */
INLINE floats floats_pairs(floats a, floats b)
{
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    return _mm512_max_ps(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b));
}

INLINE ints ints_pairs(ints a, ints b)
{
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    return _mm512_max_epi32(_mm512_permutex2var_epi32(a, even, b),
                            _mm512_permutex2var_epi32(a, odd, b));
}

INLINE void floats_store(float *to, floats value, int count)
{
    if (count >= LANES)
        _mm512_storeu_ps(to, value);
    else
        _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1u), value);
}

/* Sums times `scale`, rounded, as `count` stored bytes. */
INLINE void bytes_store(unsigned char *to, ints value, floats scale, struct rounding r, int count)
{
    floats real = _mm512_mul_ps(_mm512_cvtepi32_ps(value), scale);
    real = _mm512_min_ps(_mm512_max_ps(real, floats_all(r.low)), floats_all(r.high));
    ints steps = _mm512_add_epi32(_mm512_cvtps_epi32(real), ints_all(r.zero_point + (int)FLIP));
    __m128i bytes = _mm512_cvtepi32_epi8(steps);
    if (count >= LANES)
        _mm_storeu_si128((__m128i *)(void *)to, bytes);
    else
        _mm_mask_storeu_epi8(to, (__mmask16)((1u << count) - 1u), bytes);
}

#include "vector_sse.h"

#endif
