/* int8 convolutions with lanes along output channels, or along a row; see convolution.h. */
#ifndef CONVOLUTION_INT8_H
#define CONVOLUTION_INT8_H

#include "convolution.h"

/* The most vectors of a tile: blocks of 16 channels, at so many positions. */
#define INT8_POSITIONS (TILE_POSITIONS > POOL_MOST ? TILE_POSITIONS : POOL_MOST)
#define INT8_VECTORS (TILE_BLOCKS * 16 / LANES * INT8_POSITIONS)

/* One or two groups of four bytes of each run, into the sums. What is used more than once is kept in
 * registers: the weights, or with one position what is read of it. */
INLINE void int8_groups(const unsigned char *from, const int8_t *weights, int block, int blocks,
                        int lanes, int positions, int step, int groups, sums *sum)
{
    const int vectors = (lanes + LANES - 1) / LANES;
    if (positions == 1) {
        const activation a = activation_all(from), b = activation_all(from + 4 * (groups - 1));
        UNROLL for (int i = 0; i < blocks * vectors; i++) {
            const int8_t *at = weights + i / vectors * block + i % vectors * LANES * 4;
            if (groups == 2)
                sums_add_two(&sum[i], a, weight_load(at), b, weight_load(at + lanes * 4));
            else
                sums_add(&sum[i], a, weight_load(at));
        }
        return;
    }
    weight first[INT8_VECTORS], second[INT8_VECTORS];
    UNROLL for (int i = 0; i < blocks * vectors; i++) {
        const int8_t *at = weights + i / vectors * block + i % vectors * LANES * 4;
        first[i] = weight_load(at);
        second[i] = weight_load(at + (groups - 1) * lanes * 4);
    }
    UNROLL for (int p = 0; p < positions; p++) {
        const activation a = activation_all(from + p * step);
        const activation b = activation_all(from + p * step + 4 * (groups - 1));
        UNROLL for (int i = 0; i < blocks * vectors; i++) {
            if (groups == 2)
                sums_add_two(&sum[i * positions + p], a, first[i], b, second[i]);
            else
                sums_add(&sum[i * positions + p], a, first[i]);
        }
    }
}

/* The sums at `positions` neighbours of one row, for `blocks` whole blocks or one of `lanes`. */
INLINE void int8_sums(const unsigned char *in, const struct convolution *c, const int8_t *weights,
                      int blocks, int lanes, int positions, ints *result)
{
    const int vectors = (lanes + LANES - 1) / LANES, groups = (run_of(c) + 3) / 4;
    const int step = c->stride_x * c->pixel;
    const int block = c->kernel_height * runs_of(c) * groups * lanes * 4;
    sums sum[INT8_VECTORS];
    UNROLL for (int i = 0; i < blocks * vectors * positions; i++)
        sum[i] = sums_zero();
    ROLLED for (int run = 0; run < c->kernel_height * runs_of(c); run++) {
        const unsigned char *from = in + run / runs_of(c) * c->dilation_y * c->row +
                                    run % runs_of(c) * c->dilation_x * c->pixel;
        const int8_t *w = weights + run * groups * lanes * 4;
        int g = 0;
        OPAQUE(from);
        OPAQUE(w);
        SOME for (; g + GROUPS <= groups; g += GROUPS)
            int8_groups(from + 4 * g, w + g * lanes * 4, block, blocks, lanes, positions, step, GROUPS,
                        sum);
        if (GROUPS > 1 && g < groups)
            int8_groups(from + 4 * g, w + g * lanes * 4, block, blocks, lanes, positions, step, 1, sum);
    }
    UNROLL for (int i = 0; i < blocks * vectors * positions; i++)
        result[i] = ints_of(sum[i]);
}

/* One tile: sums, their maxima over the pooling windows, and the stored bytes. */
INLINE void int8_tile(const unsigned char *in, unsigned char *out, const struct convolution *c,
                      const int8_t *weights, const int32_t *bias, struct requantization r,
                      int channel, int blocks, int lanes, int positions)
{
    const int vectors = (lanes + LANES - 1) / LANES, all = blocks * vectors * positions;
    const struct rounding rounding = rounding_of(r);
    ints best[INT8_VECTORS], found[INT8_VECTORS];
    int8_sums(in, c, weights, blocks, lanes, positions, best);
    ROLLED for (int y = 1; y < c->pool_height; y++) {
        int8_sums(in + y * c->stride_y * c->row, c, weights, blocks, lanes, positions, found);
        UNROLL for (int i = 0; i < all; i++)
            best[i] = ints_max(best[i], found[i]);
    }
    UNROLL for (int i = 0; i < blocks * vectors; i++) {
        const int first = channel + i / vectors * 16 + i % vectors * LANES;
        const ints offset = ints_load(bias + first);
        const floats scale = floats_load(r.scale + first);
        UNROLL for (int p = 0; p < positions; p += c->pool_width) {
            ints most = best[i * positions + p];
            UNROLL for (int x = 1; x < c->pool_width; x++)
                most = ints_max(most, best[i * positions + p + x]);
            bytes_store(out + p / c->pool_width * c->out_pixel + first, ints_add(most, offset),
                        scale, rounding, c->channels - first);
        }
    }
}

/* A row of the output, for some channels: as many positions at once as fit. */
INLINE void int8_row(const unsigned char *in, unsigned char *out, const struct convolution *c,
                     const int8_t *weights, const int32_t *bias, struct requantization r,
                     int channel, int blocks, int lanes)
{
    const int width = c->width / c->pool_width * c->pool_width, step = c->stride_x * c->pixel;
    const int fitting = TILE_POSITIONS / c->pool_width * c->pool_width;
    const int positions = smaller(fitting > 0 ? fitting : c->pool_width, width);
    int x = 0;
    for (; x + positions <= width; x += positions)
        int8_tile(in + x * step, out + x / c->pool_width * c->out_pixel, c, weights, bias, r, channel,
                  blocks, lanes, positions);
    for (; x < width; x += c->pool_width)
        int8_tile(in + x * step, out + x / c->pool_width * c->out_pixel, c, weights, bias, r, channel,
                  blocks, lanes, c->pool_width);
}

INLINE void convolution_int8_channels(const unsigned char *in, unsigned char *out,
                                      const struct convolution *c, const int8_t *weights,
                                      const int32_t *bias, struct requantization r)
{
    const int whole = c->channels / 16, rest = (c->channels % 16 + 3) / 4 * 4;
    const int block = c->kernel_height * runs_of(c) * ((run_of(c) + 3) / 4) * 16 * 4;
    /* Several blocks share what is read of a single position. */
    const int blocks = c->width == 1 ? smaller(TILE_BLOCKS, whole) : 1;
    for (int y = 0; y < c->height / c->pool_height; y++) {
        const unsigned char *from = in + y * c->pool_height * c->stride_y * c->row;
        unsigned char *to = out + y * c->out_row;
        int b = 0;
        for (; blocks > 0 && b + blocks <= whole; b += blocks)
            int8_row(from, to, c, weights + b * block, bias, r, 16 * b, blocks, 16);
        if (blocks > 1)
            for (; b < whole; b++)
                int8_row(from, to, c, weights + b * block, bias, r, 16 * b, 1, 16);
        if (rest > 0)
            int8_row(from, to, c, weights + whole * block, bias, r, 16 * whole, 1, rest);
    }
}

/* Lanes along a row: the sums of `vectors` neighbours, for `channels` of the output. */
INLINE void int8_lane_sums(const unsigned char *in, const struct convolution *c,
                           const int8_t *weights, int channels, int vectors, ints *result)
{
    const int groups = (c->kernel_width + 3) / 4, group = (c->channels + 3) / 4 * 4 * 4;
    sums sum[TILE_CHANNELS * TILE_VECTORS];
    UNROLL for (int i = 0; i < channels * vectors; i++)
        sum[i] = sums_zero();
    ROLLED for (int y = 0; y < c->kernel_height; y++) {
        const unsigned char *row = in + y * c->dilation_y * c->row;
        const int8_t *w = weights + y * groups * group;
        int g = 0;
        OPAQUE(row);
        OPAQUE(w);
        for (; g + 1 < groups; g += 2) {
            const several first = several_load(w + g * group);
            const several second = several_load(w + g * group + group);
            activation a[TILE_VECTORS], b[TILE_VECTORS];
            UNROLL for (int v = 0; v < vectors; v++) {
                a[v] = activation_windows(row + v * LANES + 4 * g);
                b[v] = activation_windows(row + v * LANES + 4 * g + 4);
            }
            UNROLL for (int i = 0; i < channels * vectors; i++)
                sums_add_ones(&sum[i], a[i % vectors], first, b[i % vectors], second, i / vectors);
        }
        if (groups % 2 != 0) {
            const several last = several_load(w + g * group);
            UNROLL for (int i = 0; i < channels * vectors; i++)
                sums_add_one(&sum[i], activation_windows(row + i % vectors * LANES + 4 * g), last,
                             i / vectors);
        }
    }
    UNROLL for (int i = 0; i < channels * vectors; i++)
        result[i] = ints_of(sum[i]);
}

/* Some channels of one piece of a row, 16 outputs long at most, as rows of bytes. */
INLINE void int8_lane_rows(const unsigned char *in, unsigned char rows[8][16],
                           const struct convolution *c, const int8_t *weights, const int32_t *bias,
                           struct requantization r, int channel, int channels)
{
    const struct rounding rounding = rounding_of(r);
    const int vectors = smaller(TILE_VECTORS, 16 * c->pool_width / LANES);
    const int made = vectors * LANES / c->pool_width;
    for (int x = 0; x < 16; x += made) {
        ints best[TILE_CHANNELS * TILE_VECTORS], found[TILE_CHANNELS * TILE_VECTORS];
        const unsigned char *from = in + x * c->pool_width;
        int8_lane_sums(from, c, weights, channels, vectors, best);
        ROLLED for (int y = 1; y < c->pool_height; y++) {
            int8_lane_sums(from + y * c->stride_y * c->row, c, weights, channels, vectors, found);
            UNROLL for (int i = 0; i < channels * vectors; i++)
                best[i] = ints_max(best[i], found[i]);
        }
        UNROLL for (int k = 0; k < channels; k++) {
            const ints offset = ints_all(bias[channel + k]);
            const floats scale = floats_all(r.scale[channel + k]);
            UNROLL for (int v = 0; v < vectors; v += c->pool_width) {
                ints sum = best[k * vectors + v];
                if (c->pool_width == 2)
                    sum = ints_pairs(sum, best[k * vectors + v + 1]);
                bytes_store(&rows[(channel + k) % 8][x + v / c->pool_width * LANES],
                            ints_add(sum, offset), scale, rounding, LANES);
            }
        }
    }
}

/* For pool_width 1 or 2. */
INLINE void convolution_int8_lanes(const unsigned char *in, unsigned char *out,
                                   const struct convolution *c, const int8_t *weights,
                                   const int32_t *bias, struct requantization r)
{
    const int width = c->width / c->pool_width;
    for (int y = 0; y < c->height / c->pool_height; y++)
        for (int x = 0; x < width; x += 16)
            for (int block = 0; block < c->channels; block += 8) {
                const int many = smaller(8, c->channels - block), count = smaller(16, width - x);
                const unsigned char *from =
                    in + y * c->pool_height * c->stride_y * c->row + x * c->pool_width;
                unsigned char rows[8][16], *to = out + y * c->out_row + x * c->out_pixel + block;
                uint64_t columns[16];
                memset(rows, 0, sizeof rows);
                int k = 0;
                for (; k + TILE_CHANNELS <= many; k += TILE_CHANNELS)
                    int8_lane_rows(from, rows, c, weights + 4 * (block + k), bias, r, block + k,
                                   TILE_CHANNELS);
                for (; k < many; k++)
                    int8_lane_rows(from, rows, c, weights + 4 * (block + k), bias, r, block + k, 1);
                bytes_transpose((const unsigned char(*)[16])rows, columns);
                for (int i = 0; i < count; i++)
                    memcpy(to + i * c->out_pixel, &columns[i], (size_t)many);
            }
}

#endif
