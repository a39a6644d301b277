/* Convolutions. All geometry is constant where these are inlined, and so are the loops.
 *
 * `in` is the top left element of the first window: padding lies in the image's margins. Weights
 * are in one of these orders (pipeline/export/c/packing.py writes them):
 * - channels: blocks of 16 output channels, lanes along them, the last block a multiple of 4;
 *   [block][run][group][lane][4 bytes]. A run is what lies side by side in the input: a row of the
 *   kernel, or one of its pixels where they are apart. Floats: [block][run][element][lane].
 * - lanes: lanes along a row of one input channel; [row][group][channel][4 bytes], channels a
 *   multiple of 4. Floats: [channel][row][column].
 * - depthwise: [row][column][channel], channels a multiple of 16.
 * - plain: [channel][row][column][input channel of the group]; int16 for integers.
 */
#ifndef CONVOLUTION_H
#define CONVOLUTION_H

#include "vector.h"

struct convolution {
    int in_channels; /* of a group */
    int pixel, row;  /* input: elements from pixel to pixel, from row to row */
    int kernel_height, kernel_width, stride_y, stride_x, dilation_y, dilation_x;
    int groups;
    int height, width, channels; /* of the output before pooling */
    int pool_height, pool_width; /* max pooling of windows side by side; 1, 1: none */
    int out_pixel, out_row;      /* output after pooling: elements from pixel to pixel, row to row */
};

#define POOL_MOST 3 /* the widest pooling that is merged into a convolution */

/* Output q = clamp(round(sum * scale[channel]) + zero_point, low, high). */
struct requantization {
    const float *scale;
    int zero_point, low, high;
};

INLINE struct rounding rounding_of(struct requantization r)
{
    struct rounding rounding = {
        r.zero_point, (float)(r.low - r.zero_point), (float)(r.high - r.zero_point)};
    return rounding;
}

INLINE int smaller(int a, int b)
{
    return a < b ? a : b;
}

/* How the windows of a convolution lie in its input: `runs` in a row of the kernel, `run` elements
 * each. */
INLINE int runs_of(const struct convolution *c)
{
    return c->dilation_x == 1 ? 1 : c->kernel_width;
}

INLINE int run_of(const struct convolution *c)
{
    return c->dilation_x == 1 ? c->kernel_width * c->in_channels : c->in_channels;
}

#endif
