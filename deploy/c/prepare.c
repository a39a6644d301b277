/* See prepare.h. */
#include "prepare.h"

#include <stdlib.h>
#include <string.h>

#define COLUMNS 256 /* whose sums are kept at once */

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t floor_divided(int64_t a, int64_t b)
{
    return a / b - (a % b < 0);
}

/* The weight of input j for output i: whole numbers, max(0, 2 max(length, size) - |(2j + 1) size -
 * (2i + 1) length|). */
static int64_t weight_of(int64_t i, int64_t j, int64_t length, int64_t size)
{
    int64_t distance = (2 * j + 1) * size - (2 * i + 1) * length;
    return larger(0, 2 * larger(length, size) - (distance < 0 ? -distance : distance));
}

/* `count` lines of `length` elements, `step` apart, the lines `across` apart, to `size` each. */
static void resample(const uint8_t *in, int64_t length, int64_t step, int64_t count, int64_t across,
                     uint8_t *out, int64_t size, int64_t out_step, int64_t out_across)
{
    const int64_t reach = 2 * larger(length, size);
    for (int64_t i = 0; i < size; i++) {
        /* Only inputs with |(2j + 1) size - (2i + 1) length| below `reach` have a weight. */
        int64_t first = larger(0, floor_divided((2 * i + 1) * length - reach - size, 2 * size));
        int64_t total = 0, last = first;
        for (int64_t j = first; j < length && (2 * j + 1) * size < (2 * i + 1) * length + reach; j++) {
            total += weight_of(i, j, length, size);
            last = j;
        }
        for (int64_t begin = 0; begin < count; begin += COLUMNS) {
            int64_t sums[COLUMNS] = {0}, columns = count - begin < COLUMNS ? count - begin : COLUMNS;
            for (int64_t j = first; j <= last; j++) {
                const int64_t weight = weight_of(i, j, length, size);
                for (int64_t x = 0; x < columns; x++)
                    sums[x] += weight * in[j * step + (begin + x) * across];
            }
            for (int64_t x = 0; x < columns; x++)
                out[i * out_step + (begin + x) * out_across] = (uint8_t)((sums[x] + total / 2) / total);
        }
    }
}

/* A plane to `height` x `width`, by a triangle filter that widens when shrinking. Returns 0, or -1
 * without memory. */
static int resize(const uint8_t *in, int in_height, int in_width, uint8_t *out, int height, int width)
{
    uint8_t *rows = calloc((size_t)height, (size_t)in_width);
    if (rows == NULL)
        return -1;
    if (in_height == height)
        memcpy(rows, in, (size_t)height * (size_t)in_width);
    else
        resample(in, in_height, in_width, in_width, 1, rows, height, in_width, 1);
    if (in_width == width)
        memcpy(out, rows, (size_t)height * (size_t)width);
    else
        resample(rows, in_width, 1, height, in_width, out, width, 1, width);
    free(rows);
    return 0;
}

/* The middle of what a histogram counts; of an even number the mean of both middles, cut off. */
static int median(const int64_t histogram[256], int64_t count)
{
    int64_t seen = 0;
    int low = -1, value = 0;
    for (; value < 256; value++) {
        seen += histogram[value];
        if (low < 0 && seen >= count / 2)
            low = value;
        if (seen >= count / 2 + 1)
            break;
    }
    return (low + value) / 2;
}

/* The border's median is the paper; four times the median distance from it the noise. */
static void paper_of(const uint8_t *plane, int height, int width, int *paper, int *noise)
{
    int64_t histogram[256] = {0}, distances[256] = {0};
    const int64_t count = 2 * ((int64_t)height + width);
    for (int64_t x = 0; x < width; x++) {
        histogram[plane[x]]++;
        histogram[plane[(int64_t)(height - 1) * width + x]]++;
    }
    for (int64_t y = 0; y < height; y++) {
        histogram[plane[y * width]]++;
        histogram[plane[y * width + width - 1]]++;
    }
    *paper = median(histogram, count);
    for (int value = 0; value < 256; value++)
        distances[abs(value - *paper)] += histogram[value];
    *noise = 4 * median(distances, count);
}

struct box {
    int top, left, height, width;
};

/* What differs from the paper, bright, stretched to 255, in place; the box of it from 64 on. Returns
 * 0 where there is none. */
static int find_ink(uint8_t *plane, int height, int width, int paper, int noise, struct box *box)
{
    const int64_t count = (int64_t)height * width;
    int lowest = 255, highest = 0, most = 0;
    for (int64_t i = 0; i < count; i++) {
        lowest = plane[i] < lowest ? plane[i] : lowest;
        highest = plane[i] > highest ? plane[i] : highest;
    }
    const int sign = paper - lowest > highest - paper ? -1 : 1;
    for (int64_t i = 0; i < count; i++) {
        int ink = sign * (plane[i] - paper) - noise;
        plane[i] = (uint8_t)(ink > 0 ? ink : 0);
        most = plane[i] > most ? plane[i] : most;
    }
    if (most == 0)
        return 0;
    int top = height, bottom = -1, left = width, right = -1;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            uint8_t *ink = &plane[(int64_t)y * width + x];
            *ink = (uint8_t)(*ink * 255 / most);
            if (*ink < 64)
                continue;
            top = y < top ? y : top;
            bottom = y;
            left = x < left ? x : left;
            right = x > right ? x : right;
        }
    *box = (struct box){top, left, bottom - top + 1, right - left + 1};
    return 1;
}

/* Where the box begins along one axis, so that the centre of mass lands in the middle. */
static int corner_of(int side, int size, int64_t moment, int64_t mass)
{
    int64_t start = floor_divided((int64_t)(side - 1) * mass - 2 * moment + mass, 2 * mass);
    int64_t most = side - size;
    return (int)(start < 0 ? 0 : start > most ? most : start);
}

/* A plane that may be written to, as bright ink on black, `height` x `width`: as MNIST was made. */
static int glyph(uint8_t *plane, int in_height, int in_width, uint8_t *out, int height, int width)
{
    int paper, noise;
    struct box box;
    paper_of(plane, in_height, in_width, &paper, &noise);
    if (in_height == height && in_width == width && paper == 0) {
        memcpy(out, plane, (size_t)height * (size_t)width);
        return 0;
    }
    memset(out, 0, (size_t)height * (size_t)width);
    if (!find_ink(plane, in_height, in_width, paper, noise, &box))
        return 0;
    const int64_t side = (height < width ? height : width) * 20 / 28;
    const int64_t longest = box.height > box.width ? box.height : box.width;
    const int64_t rows = larger(1, (box.height * side + longest / 2) / longest);
    const int64_t columns = larger(1, (box.width * side + longest / 2) / longest);
    uint8_t *crop = malloc((size_t)box.height * (size_t)box.width + (size_t)(rows * columns));
    if (crop == NULL)
        return -1;
    uint8_t *ink = crop + (size_t)box.height * (size_t)box.width;
    for (int64_t y = 0; y < box.height; y++)
        memcpy(crop + y * box.width, plane + (y + box.top) * in_width + box.left, (size_t)box.width);
    int failed = resize(crop, box.height, box.width, ink, (int)rows, (int)columns);
    int64_t mass = 0, down = 0, across = 0;
    for (int64_t y = 0; !failed && y < rows; y++)
        for (int64_t x = 0; x < columns; x++) {
            mass += ink[y * columns + x];
            down += y * ink[y * columns + x];
            across += x * ink[y * columns + x];
        }
    if (mass > 0) { /* else: specks too small to survive the scaling */
        const int top = corner_of(height, (int)rows, down, mass);
        const int left = corner_of(width, (int)columns, across, mass);
        for (int64_t y = 0; y < rows; y++)
            memcpy(out + (top + y) * width + left, ink + y * columns, (size_t)columns);
    }
    free(crop);
    return failed;
}

/* One channel of a picture; luma (ITU-R BT.601, in integers) where a grey one is asked of colours. */
static void copy_plane(const struct picture *p, int channel, int grey, uint8_t *out)
{
    const int64_t count = (int64_t)p->height * p->width;
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *pixel = p->pixels + i * p->channels;
        if (p->channels == 1)
            out[i] = pixel[0];
        else if (grey)
            out[i] = (uint8_t)((299 * pixel[0] + 587 * pixel[1] + 114 * pixel[2] + 500) / 1000);
        else
            out[i] = pixel[channel];
    }
}

int picture_prepare(const struct picture *picture, enum preparation preparation, int channels,
                    int height, int width, uint8_t *out)
{
    const size_t plane = (size_t)height * (size_t)width;
    uint8_t *copy = malloc((size_t)picture->height * (size_t)picture->width);
    int failed = copy == NULL;
    for (int channel = 0; !failed && channel < channels; channel++) {
        copy_plane(picture, channel, channels == 1, copy);
        uint8_t *to = out + (size_t)channel * plane;
        if (preparation == PREPARATION_GLYPH)
            failed = glyph(copy, picture->height, picture->width, to, height, width);
        else
            failed = resize(copy, picture->height, picture->width, to, height, width);
    }
    free(copy);
    return failed ? -1 : 0;
}
