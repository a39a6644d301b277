/* Vectors of AVX2 with FMA: 8 lanes. See vector.h. */
#ifndef VECTOR_AVX2_H
#define VECTOR_AVX2_H

#include <immintrin.h>

#define LANES 8
#define GROUPS 1
#define TILE_POSITIONS 4
#define TILE_BLOCKS 3
#define TILE_VECTORS 2
#define TILE_CHANNELS 3
#define FLOAT_POSITIONS 6
#define FLOAT_BLOCKS 6
#define FLOAT_VECTORS 4
#define FLOAT_CHANNELS 3

typedef __m256i ints;
typedef __m256 floats;
typedef __m256i sums;
/* Bytes 0 and 2, and bytes 1 and 3 of each lane, as 16 bits: VPMADDUBSW, which would take them as
 * they are, saturates. */
typedef struct {
    __m256i even, odd;
} activation;
typedef struct {
    __m256i even, odd;
} weight;

INLINE sums sums_zero(void)
{
    return _mm256_setzero_si256();
}

INLINE activation activation_of(__m256i bytes)
{
    activation a = {_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(bytes, 8)};
    return a;
}

INLINE activation activation_all(const unsigned char *four)
{
    int bytes;
    memcpy(&bytes, four, sizeof bytes);
    return activation_of(_mm256_set1_epi32(bytes));
}

/* Lane i has the four bytes from `row` + i on. */
INLINE activation activation_windows(const unsigned char *row)
{
    const __m256i places = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6));
    __m128i low = _mm_loadl_epi64((const __m128i *)(const void *)row);
    __m128i high = _mm_loadl_epi64((const __m128i *)(const void *)(row + 4));
    return activation_of(_mm256_shuffle_epi8(_mm256_set_m128i(high, low), places));
}

INLINE weight weight_of(__m256i bytes)
{
    weight w = {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
    return w;
}

INLINE weight weight_load(const int8_t *from)
{
    return weight_of(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

INLINE weight weight_all(const int8_t *four)
{
    int bytes;
    memcpy(&bytes, four, sizeof bytes);
    return weight_of(_mm256_set1_epi32(bytes));
}

INLINE void sums_add(sums *to, activation a, weight w)
{
    __m256i products = _mm256_add_epi32(_mm256_madd_epi16(a.even, w.even),
                                        _mm256_madd_epi16(a.odd, w.odd));
    *to = _mm256_add_epi32(*to, products);
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
    return _mm256_loadu_si256((const __m256i *)(const void *)from);
}

INLINE ints ints_all(int32_t value)
{
    return _mm256_set1_epi32(value);
}

INLINE ints ints_add(ints a, ints b)
{
    return _mm256_add_epi32(a, b);
}

INLINE ints ints_max(ints a, ints b)
{
    return _mm256_max_epi32(a, b);
}

INLINE floats floats_load(const float *from)
{
    return _mm256_loadu_ps(from);
}

INLINE floats floats_all(float value)
{
    return _mm256_set1_ps(value);
}

/* By hand: gcc copies what the intrinsic accumulates from register to register. */
INLINE void floats_add_product(floats *to, floats a, floats b)
{
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(*to) : "x"(a), "x"(b));
}

INLINE floats floats_add(floats a, floats b)
{
    return _mm256_add_ps(a, b);
}

INLINE floats floats_max(floats a, floats b)
{
    return _mm256_max_ps(a, b);
}

INLINE floats floats_min(floats a, floats b)
{
    return _mm256_min_ps(a, b);
}

/* The larger of each two neighbours, of a, then of b. */
INLINE floats floats_pairs(floats a, floats b)
{
    floats pairs = _mm256_max_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(pairs), 0xd8));
}

INLINE ints ints_pairs(ints a, ints b)
{
    floats x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
    ints pairs = _mm256_max_epi32(_mm256_castps_si256(_mm256_shuffle_ps(x, y, 0x88)),
                                  _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0xdd)));
    return _mm256_permute4x64_epi64(pairs, 0xd8);
}

INLINE void floats_store(float *to, floats value, int count)
{
    float all[LANES];
    if (count >= LANES) {
        _mm256_storeu_ps(to, value);
    } else {
        _mm256_storeu_ps(all, value);
        memcpy(to, all, (size_t)count * sizeof(float));
    }
}

/* Sums times `scale`, rounded, as `count` stored bytes. */
INLINE void bytes_store(unsigned char *to, ints value, floats scale, struct rounding r, int count)
{
    floats real = _mm256_mul_ps(_mm256_cvtepi32_ps(value), scale);
    real = _mm256_min_ps(_mm256_max_ps(real, floats_all(r.low)), floats_all(r.high));
    ints steps = _mm256_add_epi32(_mm256_cvtps_epi32(real), ints_all(r.zero_point + (int)FLIP));
    __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(steps), _mm256_extracti128_si256(steps, 1));
    __m128i bytes = _mm_packus_epi16(words, words);
    unsigned char all[LANES];
    if (count >= LANES) {
        _mm_storel_epi64((__m128i *)(void *)to, bytes);
    } else {
        _mm_storel_epi64((__m128i *)(void *)all, bytes);
        memcpy(to, all, (size_t)count);
    }
}

#include "vector_sse.h"

#endif
