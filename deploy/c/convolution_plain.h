/* Depthwise convolutions, and all that are of no other kind; see convolution.h. */
#ifndef CONVOLUTION_PLAIN_H
#define CONVOLUTION_PLAIN_H

#include "convolution.h"

/* One sum times `scale`, rounded, as a stored byte: as `bytes_store`, in plain C. */
INLINE unsigned char byte_of(int32_t sum, float scale, struct rounding r)
{
    float real = (float)sum * scale;
    int32_t bits;
    real = real > r.low ? real : r.low;
    real = real < r.high ? real : r.high;
    real += ROUNDING_NUMBER;
    memcpy(&bits, &real, sizeof bits); /* they count in whole steps */
    return (unsigned char)((uint32_t)(bits - 0x4b400000 + r.zero_point) ^ FLIP);
}

COLD int32_t int8_plain_sum(const unsigned char *in, const struct convolution *c,
                            const int16_t *weights)
{
    int32_t sum = 0;
    for (int y = 0; y < c->kernel_height; y++)
        for (int x = 0; x < c->kernel_width; x++)
            for (int i = 0; i < c->in_channels; i++)
                sum += *weights++ *
                       stored_number(in[y * c->dilation_y * c->row + x * c->dilation_x * c->pixel + i]);
    return sum;
}

COLD void convolution_int8_plain(const unsigned char *in, unsigned char *out,
                                 const struct convolution *c, const int16_t *weights,
                                 const int32_t *bias, struct requantization r)
{
    const struct rounding rounding = rounding_of(r);
    const int kernel = c->kernel_height * c->kernel_width * c->in_channels;
    for (int y = 0; y < c->height / c->pool_height; y++)
        for (int x = 0; x < c->width / c->pool_width; x++)
            for (int k = 0; k < c->channels; k++) {
                const unsigned char *from = in + k / (c->channels / c->groups) * c->in_channels;
                int32_t most = INT32_MIN;
                for (int i = 0; i < c->pool_height * c->pool_width; i++) {
                    int row = (y * c->pool_height + i / c->pool_width) * c->stride_y;
                    int column = (x * c->pool_width + i % c->pool_width) * c->stride_x;
                    int32_t sum = int8_plain_sum(from + row * c->row + column * c->pixel, c,
                                                 weights + k * kernel);
                    most = sum > most ? sum : most;
                }
                out[y * c->out_row + x * c->out_pixel + k] =
                    byte_of(most + bias[k], r.scale[k], rounding);
            }
}

COLD void convolution_float_plain(const float *in, float *out, const struct convolution *c,
                                  const float *weights, const float *bias, float low, float high)
{
    const int kernel = c->kernel_height * c->kernel_width * c->in_channels;
    for (int y = 0; y < c->height / c->pool_height; y++)
        for (int x = 0; x < c->width / c->pool_width; x++)
            for (int k = 0; k < c->channels; k++) {
                float most = -INFINITY;
                for (int i = 0; i < c->pool_height * c->pool_width; i++) {
                    int row = (y * c->pool_height + i / c->pool_width) * c->stride_y;
                    int column = (x * c->pool_width + i % c->pool_width) * c->stride_x;
                    const float *from = in + k / (c->channels / c->groups) * c->in_channels +
                                        row * c->row + column * c->pixel;
                    const float *w = weights + k * kernel;
                    float sum = 0.0f;
                    for (int tap = 0; tap < c->kernel_height * c->kernel_width; tap++)
                        for (int e = 0; e < c->in_channels; e++)
                            sum += *w++ * from[tap / c->kernel_width * c->dilation_y * c->row +
                                               tap % c->kernel_width * c->dilation_x * c->pixel + e];
                    most = sum > most ? sum : most;
                }
                most = fmaxf(most + bias[k], low);
                out[y * c->out_row + x * c->out_pixel + k] = fminf(most, high);
            }
}

/* Sixteen channels at a time, one product for each and tap. */
INLINE void convolution_int8_depthwise(const unsigned char *in, unsigned char *out,
                                       const struct convolution *c, const int8_t *weights,
                                       const int32_t *bias, struct requantization r)
{
    const struct rounding rounding = rounding_of(r);
    const int channels = (c->channels + 15) / 16 * 16, pools = c->pool_height * c->pool_width;
    for (int y = 0; y < c->height / c->pool_height; y++)
        for (int x = 0; x < c->width / c->pool_width; x++)
            for (int k = 0; k < c->channels; k += 16) {
                int32_t most[16], sum[16];
                for (int j = 0; j < 16; j++)
                    most[j] = INT32_MIN;
                for (int i = 0; i < pools; i++) {
                    int row = (y * c->pool_height + i / c->pool_width) * c->stride_y;
                    int column = (x * c->pool_width + i % c->pool_width) * c->stride_x;
                    const unsigned char *from = in + row * c->row + column * c->pixel + k;
                    memset(sum, 0, sizeof sum);
                    for (int tap = 0; tap < c->kernel_height * c->kernel_width; tap++) {
                        const unsigned char *at = from +
                                                  tap / c->kernel_width * c->dilation_y * c->row +
                                                  tap % c->kernel_width * c->dilation_x * c->pixel;
                        for (int j = 0; j < 16; j++)
                            sum[j] += stored_number(at[j]) * weights[tap * channels + k + j];
                    }
                    for (int j = 0; j < 16; j++)
                        most[j] = sum[j] > most[j] ? sum[j] : most[j];
                }
                for (int j = 0; j < smaller(16, c->channels - k); j++)
                    out[y * c->out_row + x * c->out_pixel + k + j] =
                        byte_of(most[j] + bias[k + j], r.scale[k + j], rounding);
            }
}

INLINE void convolution_float_depthwise(const float *in, float *out, const struct convolution *c,
                                        const float *weights, const float *bias, float low, float high)
{
    const int channels = (c->channels + 15) / 16 * 16, pools = c->pool_height * c->pool_width;
    for (int y = 0; y < c->height / c->pool_height; y++)
        for (int x = 0; x < c->width / c->pool_width; x++)
            for (int k = 0; k < c->channels; k += 16) {
                float most[16], sum[16];
                for (int j = 0; j < 16; j++)
                    most[j] = -INFINITY;
                for (int i = 0; i < pools; i++) {
                    int row = (y * c->pool_height + i / c->pool_width) * c->stride_y;
                    int column = (x * c->pool_width + i % c->pool_width) * c->stride_x;
                    const float *from = in + row * c->row + column * c->pixel + k;
                    memset(sum, 0, sizeof sum);
                    for (int tap = 0; tap < c->kernel_height * c->kernel_width; tap++) {
                        const float *at = from + tap / c->kernel_width * c->dilation_y * c->row +
                                          tap % c->kernel_width * c->dilation_x * c->pixel;
                        for (int j = 0; j < 16; j++)
                            sum[j] += at[j] * weights[tap * channels + k + j];
                    }
                    for (int j = 0; j < 16; j++)
                        most[j] = sum[j] > most[j] ? sum[j] : most[j];
                }
                for (int j = 0; j < smaller(16, c->channels - k); j++)
                    out[y * c->out_row + x * c->out_pixel + k + j] =
                        fminf(fmaxf(most[j] + bias[k + j], low), high);
            }
}

#endif
