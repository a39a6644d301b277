/* What is done with each element by itself, and what is done along an axis. */
#ifndef ELEMENTWISE_H
#define ELEMENTWISE_H

#include "convolution.h"

/* The nearest integer of x, halves to even, plus zero, as a stored byte. */
INLINE unsigned char byte_near(float x, int zero, int low, int high)
{
    float bottom = (float)(low - zero), top = (float)(high - zero);
    x = x > bottom ? x : bottom;
    x = x < top ? x : top;
    x += ROUNDING_NUMBER;
    x -= ROUNDING_NUMBER;
    return (unsigned char)((uint32_t)((int32_t)x + zero) ^ FLIP);
}

/* The integer that a stored byte stands for. */
INLINE int integer_of(unsigned char stored)
{
    return (int8_t)(stored ^ FLIP);
}

/* `table` has the result for each integer, as the byte of an int8, by the byte of an int8. */
INLINE void lookup_int8(const unsigned char *in, unsigned char *out, size_t count,
                        const unsigned char table[256])
{
    for (size_t i = 0; i < count; i++)
        out[i] = (unsigned char)(table[in[i] ^ FLIP] ^ FLIP);
}

INLINE void clip_float(const float *in, float *out, size_t count, float low, float high)
{
    for (size_t i = 0; i < count; i++) {
        float x = in[i] > low ? in[i] : low;
        out[i] = x < high ? x : high;
    }
}

INLINE void leaky_relu_float(const float *in, float *out, size_t count, float alpha)
{
    for (size_t i = 0; i < count; i++)
        out[i] = in[i] < 0.0f ? in[i] * alpha : in[i];
}

INLINE void hard_swish_float(const float *in, float *out, size_t count)
{
    for (size_t i = 0; i < count; i++)
        out[i] = in[i] * fmaxf(0.0f, fminf(1.0f, in[i] * (1.0f / 6.0f) + 0.5f));
}

INLINE void sigmoid_float(const float *in, float *out, size_t count)
{
    for (size_t i = 0; i < count; i++)
        out[i] = 1.0f / (1.0f + expf(-in[i]));
}

INLINE void tanh_float(const float *in, float *out, size_t count)
{
    for (size_t i = 0; i < count; i++)
        out[i] = tanhf(in[i]);
}

/* x * scale[channel] + shift[channel], channels side by side. */
INLINE void scale_shift_float(const float *in, float *out, size_t pixels, size_t channels,
                              const float *scale, const float *shift)
{
    for (size_t i = 0; i < pixels; i++)
        for (size_t c = 0; c < channels; c++)
            out[i * channels + c] = in[i * channels + c] * scale[c] + shift[c];
}

INLINE void quantize_float(const float *in, unsigned char *out, size_t count, float scale, int zero)
{
    for (size_t i = 0; i < count; i++)
        out[i] = byte_near(in[i] / scale, zero, -128, 127);
}

INLINE void dequantize_int8(const unsigned char *in, float *out, size_t count, float scale, int zero)
{
    for (size_t i = 0; i < count; i++)
        out[i] = (float)(integer_of(in[i]) - zero) * scale;
}

/* exp(x - largest) / sum, along the axis of `size` elements that are `inner` apart. */
INLINE void softmax_float(const float *in, float *out, size_t outer, size_t size, size_t inner)
{
    for (size_t i = 0; i < outer * inner; i++) {
        const size_t first = i / inner * size * inner + i % inner;
        float most = in[first], sum = 0.0f;
        for (size_t j = 1; j < size; j++)
            most = fmaxf(most, in[first + j * inner]);
        for (size_t j = 0; j < size; j++) {
            out[first + j * inner] = expf(in[first + j * inner] - most);
            sum += out[first + j * inner];
        }
        for (size_t j = 0; j < size; j++)
            out[first + j * inner] /= sum;
    }
}

INLINE void softmax_int8(const unsigned char *in, unsigned char *out, size_t outer, size_t size,
                         size_t inner, float in_scale, float out_scale, int out_zero)
{
    for (size_t i = 0; i < outer * inner; i++) {
        const size_t first = i / inner * size * inner + i % inner;
        int most = -128;
        float sum = 0.0f;
        for (size_t j = 0; j < size; j++) {
            int q = integer_of(in[first + j * inner]);
            most = q > most ? q : most;
        }
        for (size_t j = 0; j < size; j++)
            sum += expf((float)(integer_of(in[first + j * inner]) - most) * in_scale);
        for (size_t j = 0; j < size; j++) {
            float share = expf((float)(integer_of(in[first + j * inner]) - most) * in_scale) / sum;
            out[first + j * inner] = byte_near(share / out_scale, out_zero, -128, 127);
        }
    }
}

enum operation { ADD, SUB, MUL };

/* Elements of two operands, and where each result lies; a stride of 0 repeats an element. */
struct nd {
    int rank;
    int shape[RUNNER_AXES];
    int a[RUNNER_AXES], b[RUNNER_AXES], out[RUNNER_AXES];
};

struct binary_scales {
    float a, b, out;
    int a_zero, b_zero, out_zero;
    int low, high;
};

struct places {
    int a, b, out;
};

INLINE struct places places_of(const struct nd *n, int number)
{
    struct places at = {0, 0, 0};
    for (int axis = n->rank - 1; axis >= 0; axis--) {
        int index = number % n->shape[axis];
        number /= n->shape[axis];
        at.a += index * n->a[axis];
        at.b += index * n->b[axis];
        at.out += index * n->out[axis];
    }
    return at;
}

INLINE int elements_of(const struct nd *n)
{
    int count = 1;
    for (int axis = 0; axis < n->rank; axis++)
        count *= n->shape[axis];
    return count;
}

INLINE float operated(float a, float b, enum operation operation)
{
    return operation == ADD ? a + b : operation == SUB ? a - b : a * b;
}

INLINE void binary_float(const float *a, const float *b, float *out, const struct nd *n,
                         enum operation operation)
{
    for (int i = 0; i < elements_of(n); i++) {
        const struct places at = places_of(n, i);
        out[at.out] = operated(a[at.a], b[at.b], operation);
    }
}

/* Dequantized, operated and quantized in float32, in ONNX's order. */
INLINE void binary_int8(const unsigned char *a, const unsigned char *b, unsigned char *out,
                        const struct nd *n, enum operation operation, struct binary_scales s)
{
    for (int i = 0; i < elements_of(n); i++) {
        const struct places at = places_of(n, i);
        float x = (float)(integer_of(a[at.a]) - s.a_zero) * s.a;
        float y = (float)(integer_of(b[at.b]) - s.b_zero) * s.b;
        out[at.out] = byte_near(operated(x, y, operation) / s.out, s.out_zero, s.low, s.high);
    }
}

/* m x k times k x n. */
INLINE void matmul_float(const float *a, const float *b, float *out, size_t m, size_t k, size_t n)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            float sum = 0.0f;
            for (size_t e = 0; e < k; e++)
                sum += a[i * k + e] * b[e * n + j];
            out[i * n + j] = sum;
        }
}

#endif
