/* Vectors in plain C: 4 lanes, which compilers may find registers for. An Armv6 has instructions
 * for two products of 16 bits. See vector.h. */
#ifndef VECTOR_PORTABLE_H
#define VECTOR_PORTABLE_H

#if defined(__ARM_FEATURE_SIMD32) && (defined(__clang__) || __GNUC__ >= 10)
#define HALFWORDS /* before 10, GCC has the instructions, but no functions for them */
#include <arm_acle.h>
#endif

#define LANES 4
#define GROUPS 1
#define TILE_POSITIONS 1
#define TILE_BLOCKS 1
#define TILE_VECTORS 2
#define TILE_CHANNELS 1
#define FLOAT_POSITIONS 1
#define FLOAT_BLOCKS 1
#define FLOAT_VECTORS 2
#define FLOAT_CHANNELS 1

typedef struct {
    int32_t lane[LANES];
} ints;
typedef struct {
    float lane[LANES];
} floats;
typedef ints sums;
/* Four bytes for each lane; on Armv6 as two words of two 16-bit numbers. */
typedef struct {
    int32_t even[LANES], odd[LANES];
} activation;
typedef activation weight;

#if defined(HALFWORDS)

INLINE void split(int32_t *even, int32_t *odd, const void *from)
{
    uint32_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    *even = __sxtb16((int32_t)bytes);
    *odd = __sxtb16((int32_t)(bytes >> 8 | bytes << 24)); /* rotated, in one instruction */
}

INLINE void split_weight(int32_t *even, int32_t *odd, const int8_t *from)
{
    split(even, odd, from);
}

INLINE int32_t two_products(int32_t a, int32_t w, int32_t sum)
{
    return __smlad(a, w, sum);
}

#else

/* Two numbers in one word, so that both kinds of processor read the same code. */
INLINE int32_t packed(int low, int high)
{
    return (int32_t)((uint32_t)low & 0xffffu) | (int32_t)((uint32_t)high << 16);
}

INLINE void split(int32_t *even, int32_t *odd, const unsigned char *from)
{
    *even = packed(stored_number(from[0]), stored_number(from[2]));
    *odd = packed(stored_number(from[1]), stored_number(from[3]));
}

INLINE void split_weight(int32_t *even, int32_t *odd, const int8_t *from)
{
    *even = packed(from[0], from[2]);
    *odd = packed(from[1], from[3]);
}

INLINE int32_t two_products(int32_t a, int32_t w, int32_t sum)
{
    return sum + (int16_t)a * (int16_t)w + (int16_t)(a >> 16) * (int16_t)(w >> 16);
}

#endif

INLINE sums sums_zero(void)
{
    sums zero = {{0}};
    return zero;
}

INLINE activation activation_all(const unsigned char *four)
{
    activation a;
    split(&a.even[0], &a.odd[0], four);
    for (int i = 1; i < LANES; i++) {
        a.even[i] = a.even[0];
        a.odd[i] = a.odd[0];
    }
    return a;
}

INLINE activation activation_windows(const unsigned char *row)
{
    activation a;
    for (int i = 0; i < LANES; i++)
        split(&a.even[i], &a.odd[i], row + i);
    return a;
}

INLINE weight weight_load(const int8_t *from)
{
    weight w;
    for (int i = 0; i < LANES; i++)
        split_weight(&w.even[i], &w.odd[i], from + 4 * i);
    return w;
}

INLINE weight weight_all(const int8_t *four)
{
    weight w;
    split_weight(&w.even[0], &w.odd[0], four);
    for (int i = 1; i < LANES; i++) {
        w.even[i] = w.even[0];
        w.odd[i] = w.odd[0];
    }
    return w;
}

INLINE void sums_add(sums *to, activation a, weight w)
{
    for (int i = 0; i < LANES; i++)
        to->lane[i] = two_products(a.even[i], w.even[i],
                                   two_products(a.odd[i], w.odd[i], to->lane[i]));
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
    ints value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE ints ints_all(int32_t value)
{
    ints all;
    for (int i = 0; i < LANES; i++)
        all.lane[i] = value;
    return all;
}

INLINE ints ints_add(ints a, ints b)
{
    for (int i = 0; i < LANES; i++)
        a.lane[i] += b.lane[i];
    return a;
}

INLINE ints ints_max(ints a, ints b)
{
    for (int i = 0; i < LANES; i++)
        a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}

/* The larger of each two neighbours, of a, then of b. */
INLINE ints ints_pairs(ints a, ints b)
{
    ints pairs;
    for (int i = 0; i < LANES / 2; i++) {
        pairs.lane[i] = a.lane[2 * i] > a.lane[2 * i + 1] ? a.lane[2 * i] : a.lane[2 * i + 1];
        pairs.lane[i + LANES / 2] =
            b.lane[2 * i] > b.lane[2 * i + 1] ? b.lane[2 * i] : b.lane[2 * i + 1];
    }
    return pairs;
}

INLINE floats floats_load(const float *from)
{
    floats value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE floats floats_all(float value)
{
    floats all;
    for (int i = 0; i < LANES; i++)
        all.lane[i] = value;
    return all;
}

INLINE void floats_add_product(floats *to, floats a, floats b)
{
    for (int i = 0; i < LANES; i++)
        to->lane[i] += a.lane[i] * b.lane[i];
}

INLINE floats floats_add(floats a, floats b)
{
    for (int i = 0; i < LANES; i++)
        a.lane[i] += b.lane[i];
    return a;
}

INLINE floats floats_max(floats a, floats b)
{
    for (int i = 0; i < LANES; i++)
        a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}

INLINE floats floats_min(floats a, floats b)
{
    for (int i = 0; i < LANES; i++)
        a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}

INLINE floats floats_pairs(floats a, floats b)
{
    floats pairs;
    for (int i = 0; i < LANES / 2; i++) {
        pairs.lane[i] = a.lane[2 * i] > a.lane[2 * i + 1] ? a.lane[2 * i] : a.lane[2 * i + 1];
        pairs.lane[i + LANES / 2] =
            b.lane[2 * i] > b.lane[2 * i + 1] ? b.lane[2 * i] : b.lane[2 * i + 1];
    }
    return pairs;
}

INLINE void floats_store(float *to, floats value, int count)
{
    memcpy(to, &value, (size_t)(count < LANES ? count : LANES) * sizeof(float));
}

/* Sums times `scale`, rounded, as `count` stored bytes. */
INLINE void bytes_store(unsigned char *to, ints value, floats scale, struct rounding r, int count)
{
    for (int i = 0; i < (count < LANES ? count : LANES); i++) {
        float real = (float)value.lane[i] * scale.lane[i];
        real = real > r.low ? real : r.low;
        real = real < r.high ? real : r.high;
        int32_t bits;
        real += ROUNDING_NUMBER;
        memcpy(&bits, &real, sizeof bits); /* they count in whole steps */
        to[i] = (unsigned char)(((uint32_t)(bits + r.zero_point)) ^ FLIP);
    }
}

/* rows[c][x], c below 8, x below 16, as 8 bytes for each x. */
INLINE void bytes_transpose(const unsigned char rows[8][16], uint64_t columns[16])
{
    unsigned char *bytes = (unsigned char *)columns;
    for (int x = 0; x < 16; x++)
        for (int c = 0; c < 8; c++)
            bytes[8 * x + c] = rows[c][x];
}

#endif
