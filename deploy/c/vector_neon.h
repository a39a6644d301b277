/* Vectors of NEON, of Armv7 and 64-bit Arm, with or without the dot product: 4 lanes. See
 * vector.h. */
#ifndef VECTOR_NEON_H
#define VECTOR_NEON_H

#include <arm_neon.h>

#define LANES 4
#define GROUPS 2
#define FLOAT_POSITIONS 4
#define FLOAT_BLOCKS 2
#define FLOAT_VECTORS 4
#define FLOAT_CHANNELS 3

typedef int32x4_t ints;
typedef float32x4_t floats;
typedef int8x16_t activation;
typedef int8x16_t weight;

INLINE int8x16_t four_bytes(const void *from)
{
    int32_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    return vreinterpretq_s8_s32(vdupq_n_s32(bytes));
}

INLINE activation activation_all(const unsigned char *four)
{
    return four_bytes(four);
}

/* Lane i has the four bytes from `row` + i on. */
INLINE activation activation_windows(const unsigned char *row)
{
#if defined(__aarch64__)
    static const uint8_t places[16] = {0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6};
    return vreinterpretq_s8_u8(vqtbl1q_u8(vld1q_u8(row), vld1q_u8(places)));
#else
    static const uint8_t places[16] = {0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6};
    uint8x8_t bytes = vld1_u8(row);
    return vreinterpretq_s8_u8(
        vcombine_u8(vtbl1_u8(bytes, vld1_u8(places)), vtbl1_u8(bytes, vld1_u8(places + 8))));
#endif
}

INLINE weight weight_load(const int8_t *from)
{
    return vld1q_s8(from);
}

#if defined(VECTOR_DOTPROD)

#define TILE_POSITIONS 4
#define TILE_BLOCKS 1
#define TILE_VECTORS 2
#define TILE_CHANNELS 6

typedef int32x4_t sums;

INLINE sums sums_zero(void)
{
    return vdupq_n_s32(0);
}

INLINE void sums_add(sums *to, activation a, weight w)
{
    *to = vdotq_s32(*to, a, w);
}

INLINE void sums_add_two(sums *to, activation a, weight w, activation b, weight v)
{
    *to = vdotq_s32(vdotq_s32(*to, a, w), b, v);
}

INLINE ints ints_of(sums from)
{
    return from;
}

#else

#define TILE_POSITIONS 2
#define TILE_BLOCKS 1
#define TILE_VECTORS 2
#define TILE_CHANNELS 3

/* Each lane's sum in two halves: of its first two bytes, and of its last two. */
typedef struct {
    int32x4_t low, high;
} sums;

INLINE sums sums_zero(void)
{
    sums zero = {vdupq_n_s32(0), vdupq_n_s32(0)};
    return zero;
}

INLINE void sums_add(sums *to, activation a, weight w)
{
    to->low = vpadalq_s16(to->low, vmull_s8(vget_low_s8(a), vget_low_s8(w)));
    to->high = vpadalq_s16(to->high, vmull_s8(vget_high_s8(a), vget_high_s8(w)));
}

/* Two products fit 16 bits, since no weight is -128. By hand, since clang takes halves apart that
 * the instructions can reach, and begins so much at once that registers run out. */
INLINE void sums_add_two(sums *to, activation a, weight w, activation b, weight v)
{
#if defined(__aarch64__)
    int16x8_t low, high;
    __asm__("smull %[x].8h, %[a].8b, %[w].8b\n\t"
            "smull2 %[y].8h, %[a].16b, %[w].16b\n\t"
            "smlal %[x].8h, %[b].8b, %[v].8b\n\t"
            "smlal2 %[y].8h, %[b].16b, %[v].16b\n\t"
            "sadalp %[low].4s, %[x].8h\n\t"
            "sadalp %[high].4s, %[y].8h"
            : [x] "=&w"(low), [y] "=&w"(high), [low] "+w"(to->low), [high] "+w"(to->high)
            : [a] "w"(a), [w] "w"(w), [b] "w"(b), [v] "w"(v));
#else
    int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(w));
    int16x8_t high = vmull_s8(vget_high_s8(a), vget_high_s8(w));
    low = vmlal_s8(low, vget_low_s8(b), vget_low_s8(v));
    high = vmlal_s8(high, vget_high_s8(b), vget_high_s8(v));
    to->low = vpadalq_s16(to->low, low);
    to->high = vpadalq_s16(to->high, high);
#endif
}

INLINE ints ints_of(sums from)
{
#if defined(__aarch64__)
    return vpaddq_s32(from.low, from.high);
#else
    return vcombine_s32(vpadd_s32(vget_low_s32(from.low), vget_high_s32(from.low)),
                        vpadd_s32(vget_low_s32(from.high), vget_high_s32(from.high)));
#endif
}

#endif

/* The weights of TILE_CHANNELS channels, four bytes each. */
#define SEVERAL
typedef struct {
    int8x16_t four[(TILE_CHANNELS + 3) / 4];
} several;

INLINE several several_load(const int8_t *from)
{
    several s;
    UNROLL for (int i = 0; i < (TILE_CHANNELS + 3) / 4; i++)
        s.four[i] = vld1q_s8(from + 16 * i);
    return s;
}

#if defined(VECTOR_DOTPROD)
INLINE void sums_add_one(sums *to, activation a, several s, int channel)
{
    const int8x16_t four = s.four[channel / 4];
    switch (channel % 4) { /* the lane is a part of the instruction */
    case 0: *to = vdotq_laneq_s32(*to, a, four, 0); break;
    case 1: *to = vdotq_laneq_s32(*to, a, four, 1); break;
    case 2: *to = vdotq_laneq_s32(*to, a, four, 2); break;
    default: *to = vdotq_laneq_s32(*to, a, four, 3); break;
    }
}

INLINE void sums_add_ones(sums *to, activation a, several s, activation b, several t, int channel)
{
    sums_add_one(to, a, s, channel);
    sums_add_one(to, b, t, channel);
}
#else
INLINE weight weight_of(several s, int channel)
{
    const int32x4_t four = vreinterpretq_s32_s8(s.four[channel / 4]);
    switch (channel % 4) { /* the lane is a part of the instruction */
    case 0: return vreinterpretq_s8_s32(vdupq_n_s32(vgetq_lane_s32(four, 0)));
    case 1: return vreinterpretq_s8_s32(vdupq_n_s32(vgetq_lane_s32(four, 1)));
    case 2: return vreinterpretq_s8_s32(vdupq_n_s32(vgetq_lane_s32(four, 2)));
    default: return vreinterpretq_s8_s32(vdupq_n_s32(vgetq_lane_s32(four, 3)));
    }
}

INLINE void sums_add_one(sums *to, activation a, several s, int channel)
{
    sums_add(to, a, weight_of(s, channel));
}

INLINE void sums_add_ones(sums *to, activation a, several s, activation b, several t, int channel)
{
    sums_add_two(to, a, weight_of(s, channel), b, weight_of(t, channel));
}
#endif

INLINE ints ints_load(const int32_t *from)
{
    return vld1q_s32(from);
}

INLINE ints ints_all(int32_t value)
{
    return vdupq_n_s32(value);
}

INLINE ints ints_add(ints a, ints b)
{
    return vaddq_s32(a, b);
}

INLINE ints ints_max(ints a, ints b)
{
    return vmaxq_s32(a, b);
}

/* The larger of each two neighbours, of a, then of b. */
INLINE ints ints_pairs(ints a, ints b)
{
#if defined(__aarch64__)
    return vpmaxq_s32(a, b);
#else
    return vcombine_s32(vpmax_s32(vget_low_s32(a), vget_high_s32(a)),
                        vpmax_s32(vget_low_s32(b), vget_high_s32(b)));
#endif
}

INLINE floats floats_load(const float *from)
{
    return vld1q_f32(from);
}

INLINE floats floats_all(float value)
{
    return vdupq_n_f32(value);
}

INLINE void floats_add_product(floats *to, floats a, floats b)
{
#if defined(__ARM_FEATURE_FMA)
    *to = vfmaq_f32(*to, a, b);
#else
    *to = vmlaq_f32(*to, a, b);
#endif
}

INLINE floats floats_add(floats a, floats b)
{
    return vaddq_f32(a, b);
}

INLINE floats floats_max(floats a, floats b)
{
    return vmaxq_f32(a, b);
}

INLINE floats floats_min(floats a, floats b)
{
    return vminq_f32(a, b);
}

INLINE floats floats_pairs(floats a, floats b)
{
#if defined(__aarch64__)
    return vpmaxq_f32(a, b);
#else
    return vcombine_f32(vpmax_f32(vget_low_f32(a), vget_high_f32(a)),
                        vpmax_f32(vget_low_f32(b), vget_high_f32(b)));
#endif
}

INLINE void floats_store(float *to, floats value, int count)
{
    float all[LANES];
    if (count >= LANES) {
        vst1q_f32(to, value);
    } else {
        vst1q_f32(all, value);
        memcpy(to, all, (size_t)count * sizeof(float));
    }
}

/* Sums times `scale`, rounded, as `count` stored bytes. */
INLINE void bytes_store(unsigned char *to, ints value, floats scale, struct rounding r, int count)
{
    floats real = vmulq_f32(vcvtq_f32_s32(value), scale);
    real = vminq_f32(vmaxq_f32(real, floats_all(r.low)), floats_all(r.high));
#if defined(__aarch64__)
    ints steps = vaddq_s32(vcvtnq_s32_f32(real), ints_all(r.zero_point));
#else
    /* The sum's bits count in whole steps. */
    const int32_t base = 0x4b400000;
    ints bits = vreinterpretq_s32_f32(vaddq_f32(real, floats_all(ROUNDING_NUMBER)));
    ints steps = vaddq_s32(bits, ints_all(r.zero_point - base));
#endif
    int16x4_t half = vmovn_s32(steps);
    int8x8_t bytes = vmovn_s16(vcombine_s16(half, half));
    const uint32_t all = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
    memcpy(to, &all, (size_t)(count < LANES ? count : LANES));
}

/* rows[c][x], c below 8, x below 16, as 8 bytes for each x. */
INLINE void bytes_transpose(const unsigned char rows[8][16], uint64_t columns[16])
{
    uint8x16x2_t s[4];
    UNROLL for (int i = 0; i < 4; i++)
        s[i] = vzipq_u8(vld1q_u8(rows[2 * i]), vld1q_u8(rows[2 * i + 1]));
    UNROLL for (int i = 0; i < 2; i++) { /* low and high halves of x */
        uint16x8x2_t a = vzipq_u16(vreinterpretq_u16_u8(s[0].val[i]), vreinterpretq_u16_u8(s[1].val[i]));
        uint16x8x2_t b = vzipq_u16(vreinterpretq_u16_u8(s[2].val[i]), vreinterpretq_u16_u8(s[3].val[i]));
        UNROLL for (int j = 0; j < 2; j++) {
            uint32x4x2_t c = vzipq_u32(vreinterpretq_u32_u16(a.val[j]), vreinterpretq_u32_u16(b.val[j]));
            vst1q_u64(columns + 8 * i + 4 * j, vreinterpretq_u64_u32(c.val[0]));
            vst1q_u64(columns + 8 * i + 4 * j + 2, vreinterpretq_u64_u32(c.val[1]));
        }
    }
}

#endif
