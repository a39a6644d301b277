/* Max and average pooling of images stored H x W x C; windows are cut off at the image. */
#ifndef POOLING_H
#define POOLING_H

#include "convolution.h"
#include "convolution_plain.h"

struct pooling {
    int channels, height, width;
    int row; /* input: elements from row to row */
    int kernel_height, kernel_width, stride_y, stride_x, dilation_y, dilation_x;
    int top, left; /* padding */
    int out_height, out_width, out_row;
    int count_padding; /* averages: whether padding counts, up to this much after the image: */
    int bottom, right;
};

/* The taps `first` to `last` - 1 of a window that begins at `start` lie within 0 to `size` - 1. */
INLINE void taps_within(int start, int dilation, int kernel, int size, int *first, int *last)
{
    *first = start < 0 ? (-start + dilation - 1) / dilation : 0;
    *last = start < size ? smaller(kernel, (size - 1 - start) / dilation + 1) : 0;
}

struct window {
    int first_y, last_y, first_x, last_x; /* taps inside the image */
    int offset;                           /* of the tap 0, 0, in elements */
};

INLINE struct window window_at(const struct pooling *p, int y, int x)
{
    struct window w;
    const int top = y * p->stride_y - p->top, left = x * p->stride_x - p->left;
    taps_within(top, p->dilation_y, p->kernel_height, p->height, &w.first_y, &w.last_y);
    taps_within(left, p->dilation_x, p->kernel_width, p->width, &w.first_x, &w.last_x);
    w.offset = top * p->row + left * p->channels;
    return w;
}

/* How many elements an average is divided by. */
INLINE int counted(const struct pooling *p, struct window w, int y, int x)
{
    if (p->count_padding) {
        int first, last, first_x, last_x;
        taps_within(y * p->stride_y, p->dilation_y, p->kernel_height, p->top + p->height + p->bottom,
                    &first, &last);
        taps_within(x * p->stride_x, p->dilation_x, p->kernel_width, p->left + p->width + p->right,
                    &first_x, &last_x);
        return (last - first) * (last_x - first_x);
    }
    return (w.last_y - w.first_y) * (w.last_x - w.first_x);
}

INLINE void max_pool_int8(const unsigned char *in, unsigned char *out, const struct pooling *p)
{
    for (int y = 0; y < p->out_height; y++)
        for (int x = 0; x < p->out_width; x++) {
            const struct window w = window_at(p, y, x);
            unsigned char *to = out + y * p->out_row + x * p->channels;
            memset(to, (int)(0x80u ^ FLIP), (size_t)p->channels); /* -128 */
            for (int i = w.first_y; i < w.last_y; i++)
                for (int j = w.first_x; j < w.last_x; j++) {
                    const unsigned char *from =
                        in + w.offset + i * p->dilation_y * p->row + j * p->dilation_x * p->channels;
                    for (int c = 0; c < p->channels; c++)
                        to[c] = stored_number(from[c]) > stored_number(to[c]) ? from[c] : to[c];
                }
        }
}

INLINE void max_pool_float(const float *in, float *out, const struct pooling *p)
{
    for (int y = 0; y < p->out_height; y++)
        for (int x = 0; x < p->out_width; x++) {
            const struct window w = window_at(p, y, x);
            float *to = out + y * p->out_row + x * p->channels;
            for (int c = 0; c < p->channels; c++)
                to[c] = -INFINITY;
            for (int i = w.first_y; i < w.last_y; i++)
                for (int j = w.first_x; j < w.last_x; j++) {
                    const float *from =
                        in + w.offset + i * p->dilation_y * p->row + j * p->dilation_x * p->channels;
                    for (int c = 0; c < p->channels; c++)
                        to[c] = from[c] > to[c] ? from[c] : to[c];
                }
        }
}

/* The sum of q - in_zero times ratio / count, rounded, plus out_zero; ratio is s_x / s_y. */
INLINE void average_pool_int8(const unsigned char *in, unsigned char *out, const struct pooling *p,
                              float ratio, int in_zero, int out_zero)
{
    const struct rounding rounding = {out_zero, (float)(-128 - out_zero), (float)(127 - out_zero)};
    const int zero = in_zero + (int)FLIP;
    for (int y = 0; y < p->out_height; y++)
        for (int x = 0; x < p->out_width; x++) {
            const struct window w = window_at(p, y, x);
            const int inside = (w.last_y - w.first_y) * (w.last_x - w.first_x);
            const float scale = ratio / (float)counted(p, w, y, x);
            for (int c = 0; c < p->channels; c++) {
                int32_t sum = -zero * inside;
                for (int i = w.first_y; i < w.last_y; i++)
                    for (int j = w.first_x; j < w.last_x; j++)
                        sum += stored_number(in[w.offset + i * p->dilation_y * p->row +
                                                j * p->dilation_x * p->channels + c]);
                out[y * p->out_row + x * p->channels + c] = byte_of(sum, scale, rounding);
            }
        }
}

INLINE void average_pool_float(const float *in, float *out, const struct pooling *p)
{
    for (int y = 0; y < p->out_height; y++)
        for (int x = 0; x < p->out_width; x++) {
            const struct window w = window_at(p, y, x);
            float *to = out + y * p->out_row + x * p->channels;
            const float count = (float)counted(p, w, y, x);
            for (int c = 0; c < p->channels; c++)
                to[c] = 0.0f;
            for (int i = w.first_y; i < w.last_y; i++)
                for (int j = w.first_x; j < w.last_x; j++) {
                    const float *from =
                        in + w.offset + i * p->dilation_y * p->row + j * p->dilation_x * p->channels;
                    for (int c = 0; c < p->channels; c++)
                        to[c] += from[c];
                }
            for (int c = 0; c < p->channels; c++)
                to[c] /= count;
        }
}

#endif
