/* See images.h. */
#include "images.h"

#include <stdlib.h>

struct text {
    const uint8_t *bytes;
    size_t count, at;
};

static int is_space(uint8_t c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* White space, at least one, and comments after it. Returns whether there was some. */
static int skip_space(struct text *t)
{
    size_t begin = t->at;
    while (t->at < t->count) {
        if (is_space(t->bytes[t->at])) {
            t->at++;
        } else if (t->bytes[t->at] == '#' && t->at > begin) {
            while (t->at < t->count && t->bytes[t->at] != '\n')
                t->at++;
        } else {
            break;
        }
    }
    return t->at > begin;
}

/* A whole number, -1 where there is none or it is beyond a milliard. */
static long read_number(struct text *t)
{
    long value = 0;
    size_t begin = t->at;
    while (t->at < t->count && t->bytes[t->at] >= '0' && t->bytes[t->at] <= '9') {
        value = value * 10 + (t->bytes[t->at++] - '0');
        if (value > 1000000000)
            return -1;
    }
    return t->at > begin ? value : -1;
}

static const char *read_samples(struct text *t, int text, long maximum, size_t count, uint8_t *out)
{
    if (!text && t->count - t->at < count + 1) /* one byte of white space comes first */
        return "truncated: it ends before its last pixel";
    for (size_t i = 0; i < count; i++) {
        long value;
        if (text) {
            skip_space(t);
            value = read_number(t);
            if (value < 0)
                return t->at < t->count ? "a value is no number" : "truncated: it ends too early";
        } else {
            value = t->bytes[t->at + 1 + i];
        }
        if (value > maximum)
            return "a value exceeds the stated maximum";
        out[i] = (uint8_t)((value * 255 + maximum / 2) / maximum);
    }
    return NULL;
}

const char *picture_decode(const uint8_t *bytes, size_t count, struct picture *picture)
{
    struct text t = {bytes, count, 2};
    long header[3];
    picture->pixels = NULL;
    if (count == 0)
        return "the file is empty";
    if (count < 3 || bytes[0] != 'P' || (bytes[1] != '2' && bytes[1] != '3' && bytes[1] != '5' && bytes[1] != '6'))
        return "neither PGM nor PPM nor IDX";
    for (int i = 0; i < 3; i++) {
        if (!skip_space(&t) || (header[i] = read_number(&t)) < 0)
            return "broken PNM header";
    }
    if (header[0] == 0 || header[1] == 0)
        return "the picture has no pixels";
    if (header[2] < 1 || header[2] > 255)
        return "its maximum value is not 1 to 255";
    if (header[0] > MOST_PIXELS / header[1])
        return "more than 64,000,000 pixels";
    picture->width = (int)header[0];
    picture->height = (int)header[1];
    picture->channels = bytes[1] == '3' || bytes[1] == '6' ? 3 : 1;
    size_t samples = (size_t)header[0] * (size_t)header[1] * (size_t)picture->channels;
    const int text = bytes[1] == '2' || bytes[1] == '3';
    if (count - t.at < samples / (text ? 2 : 1)) /* before memory is asked for */
        return "truncated: it ends before its last pixel";
    picture->pixels = malloc(samples);
    if (picture->pixels == NULL)
        return "there is not enough memory for it";
    const char *wrong = read_samples(&t, text, header[2], samples, picture->pixels);
    if (wrong != NULL) {
        free(picture->pixels);
        picture->pixels = NULL;
    }
    return wrong;
}
