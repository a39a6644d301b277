/* float32 convolutions with lanes along output channels, or along a row; see convolution.h. */
#ifndef CONVOLUTION_FLOAT_H
#define CONVOLUTION_FLOAT_H

#include "convolution.h"

#define FLOAT_MOST (FLOAT_POSITIONS > POOL_MOST ? FLOAT_POSITIONS : POOL_MOST)
#define FLOAT_ALL (FLOAT_BLOCKS * 16 / LANES * FLOAT_MOST)

/* The sums at `positions` neighbours of one row, for `blocks` whole blocks or one of `lanes`. */
INLINE void float_sums(const float *in, const struct convolution *c, const float *weights, int blocks,
                       int lanes, int positions, floats *sum)
{
    const int vectors = (lanes + LANES - 1) / LANES, step = c->stride_x * c->pixel;
    const int run = run_of(c), runs = c->kernel_height * runs_of(c), block = runs * run * lanes;
    UNROLL for (int i = 0; i < blocks * vectors * positions; i++)
        sum[i] = floats_all(0.0f);
    ROLLED for (int r = 0; r < runs; r++) {
        const float *from =
            in + r / runs_of(c) * c->dilation_y * c->row + r % runs_of(c) * c->dilation_x * c->pixel;
        const float *w = weights + r * run * lanes;
        OPAQUE(from);
        OPAQUE(w);
        SOME for (int e = 0; e < run; e++) {
            floats a[FLOAT_MOST];
            UNROLL for (int p = 0; p < positions; p++)
                a[p] = floats_all(from[p * step + e]);
            UNROLL for (int i = 0; i < blocks * vectors; i++) {
                floats b = floats_load(w + i / vectors * block + e * lanes + i % vectors * LANES);
                UNROLL for (int p = 0; p < positions; p++)
                    floats_add_product(&sum[i * positions + p], a[p], b);
            }
        }
    }
}

/* One tile: sums, their maxima over the pooling windows, and the clamped result. */
INLINE void float_tile(const float *in, float *out, const struct convolution *c, const float *weights,
                       const float *bias, float low, float high, int channel, int blocks, int lanes,
                       int positions)
{
    const int vectors = (lanes + LANES - 1) / LANES, all = blocks * vectors * positions;
    floats best[FLOAT_ALL], found[FLOAT_ALL];
    float_sums(in, c, weights, blocks, lanes, positions, best);
    ROLLED for (int y = 1; y < c->pool_height; y++) {
        float_sums(in + y * c->stride_y * c->row, c, weights, blocks, lanes, positions, found);
        UNROLL for (int i = 0; i < all; i++)
            best[i] = floats_max(best[i], found[i]);
    }
    UNROLL for (int i = 0; i < blocks * vectors; i++) {
        const int first = channel + i / vectors * 16 + i % vectors * LANES;
        const floats offset = floats_load(bias + first);
        UNROLL for (int p = 0; p < positions; p += c->pool_width) {
            floats most = best[i * positions + p];
            UNROLL for (int x = 1; x < c->pool_width; x++)
                most = floats_max(most, best[i * positions + p + x]);
            most = floats_max(floats_add(most, offset), floats_all(low));
            floats_store(out + p / c->pool_width * c->out_pixel + first,
                         floats_min(most, floats_all(high)), c->channels - first);
        }
    }
}

/* A row of the output, for some channels: as many positions at once as fit. */
INLINE void float_row(const float *in, float *out, const struct convolution *c, const float *weights,
                      const float *bias, float low, float high, int channel, int blocks, int lanes)
{
    const int width = c->width / c->pool_width * c->pool_width, step = c->stride_x * c->pixel;
    const int fitting = FLOAT_POSITIONS / c->pool_width * c->pool_width;
    const int positions = smaller(fitting > 0 ? fitting : c->pool_width, width);
    int x = 0;
    for (; x + positions <= width; x += positions)
        float_tile(in + x * step, out + x / c->pool_width * c->out_pixel, c, weights, bias, low, high,
                   channel, blocks, lanes, positions);
    for (; x < width; x += c->pool_width)
        float_tile(in + x * step, out + x / c->pool_width * c->out_pixel, c, weights, bias, low, high,
                   channel, blocks, lanes, c->pool_width);
}

INLINE void convolution_float_channels(const float *in, float *out, const struct convolution *c,
                                       const float *weights, const float *bias, float low, float high)
{
    const int whole = c->channels / 16, rest = (c->channels % 16 + 3) / 4 * 4;
    const int block = c->kernel_height * runs_of(c) * run_of(c) * 16;
    /* Several blocks share what is read of a single position. */
    const int blocks = c->width == 1 ? smaller(FLOAT_BLOCKS, whole) : 1;
    for (int y = 0; y < c->height / c->pool_height; y++) {
        const float *from = in + y * c->pool_height * c->stride_y * c->row;
        float *to = out + y * c->out_row;
        int b = 0;
        for (; blocks > 0 && b + blocks <= whole; b += blocks)
            float_row(from, to, c, weights + b * block, bias, low, high, 16 * b, blocks, 16);
        if (blocks > 1)
            for (; b < whole; b++)
                float_row(from, to, c, weights + b * block, bias, low, high, 16 * b, 1, 16);
        if (rest > 0)
            float_row(from, to, c, weights + whole * block, bias, low, high, 16 * whole, 1, rest);
    }
}

/* Lanes along a row: the sums of `vectors` neighbouring vectors, for `channels` of the output. */
INLINE void float_lane_sums(const float *in, const struct convolution *c, const float *weights,
                            int channels, int vectors, floats *sum)
{
    const int kernel = c->kernel_height * c->kernel_width;
    UNROLL for (int i = 0; i < channels * vectors; i++)
        sum[i] = floats_all(0.0f);
    ROLLED for (int y = 0; y < c->kernel_height; y++)
        for (int x = 0; x < c->kernel_width; x++) {
            const float *row = in + y * c->dilation_y * c->row + x;
            OPAQUE(row);
            floats a[FLOAT_VECTORS];
            UNROLL for (int v = 0; v < vectors; v++)
                a[v] = floats_load(row + v * LANES);
            UNROLL for (int k = 0; k < channels; k++) {
                const floats b = floats_all(weights[k * kernel + y * c->kernel_width + x]);
                UNROLL for (int v = 0; v < vectors; v++)
                    floats_add_product(&sum[k * vectors + v], a[v], b);
            }
        }
}

/* Some channels of one piece of a row: `vectors` vectors before pooling, `count` outputs. */
INLINE void float_lane_tile(const float *in, float *out, const struct convolution *c,
                            const float *weights, const float *bias, float low, float high,
                            int channels, int vectors, int count)
{
    floats best[FLOAT_CHANNELS * FLOAT_VECTORS], found[FLOAT_CHANNELS * FLOAT_VECTORS];
    float_lane_sums(in, c, weights, channels, vectors, best);
    ROLLED for (int y = 1; y < c->pool_height; y++) {
        float_lane_sums(in + y * c->stride_y * c->row, c, weights, channels, vectors, found);
        UNROLL for (int i = 0; i < channels * vectors; i++)
            best[i] = floats_max(best[i], found[i]);
    }
    float made[FLOAT_CHANNELS][FLOAT_VECTORS * LANES];
    UNROLL for (int k = 0; k < channels; k++)
        UNROLL for (int v = 0; v < vectors; v += c->pool_width) {
            floats sum = best[k * vectors + v];
            if (c->pool_width == 2)
                sum = floats_pairs(sum, best[k * vectors + smaller(v + 1, vectors - 1)]);
            sum = floats_max(floats_add(sum, floats_all(bias[k])), floats_all(low));
            floats_store(&made[k][v / c->pool_width * LANES], floats_min(sum, floats_all(high)), LANES);
        }
    for (int x = 0; x < count; x++)
        UNROLL for (int k = 0; k < channels; k++)
            out[x * c->out_pixel + k] = made[k][x];
}

/* All channels of one piece of a row. */
INLINE void float_lane_piece(const float *in, float *out, const struct convolution *c,
                             const float *weights, const float *bias, float low, float high, int count)
{
    const int kernel = c->kernel_height * c->kernel_width;
    const int vectors = (count * c->pool_width + LANES - 1) / LANES;
    int k = 0;
    for (; k + FLOAT_CHANNELS <= c->channels; k += FLOAT_CHANNELS)
        float_lane_tile(in, out + k, c, weights + k * kernel, bias + k, low, high, FLOAT_CHANNELS,
                        vectors, count);
    for (; k < c->channels; k++)
        float_lane_tile(in, out + k, c, weights + k * kernel, bias + k, low, high, 1, vectors, count);
}

/* For pool_width 1 or 2. A row's last piece takes no more vectors than it needs, since they must
 * not be read from too far beyond the image. */
INLINE void convolution_float_lanes(const float *in, float *out, const struct convolution *c,
                                    const float *weights, const float *bias, float low, float high)
{
    const int width = c->width / c->pool_width, piece = FLOAT_VECTORS * LANES / c->pool_width;
    for (int y = 0; y < c->height / c->pool_height; y++) {
        const float *from = in + y * c->pool_height * c->stride_y * c->row;
        float *to = out + y * c->out_row;
        for (int x = 0; x + piece <= width; x += piece)
            float_lane_piece(from + x * c->pool_width, to + x * c->out_pixel, c, weights, bias, low,
                             high, piece);
        if (width % piece > 0)
            float_lane_piece(from + (width - width % piece) * c->pool_width,
                             to + (width - width % piece) * c->out_pixel, c, weights, bias, low, high,
                             width % piece);
    }
}

#endif
