/* See reader.h. */
#include "reader.h"

#include "options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MOST_BYTES ((size_t)1 << 30) /* of a picture's file: text of 64,000,000 coloured pixels */

static int64_t big_endian(const uint8_t *bytes)
{
    return (int64_t)bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
}

/* The header of an IDX file of bytes: N x H x W, or N x C x H x W. */
static int read_idx(struct reader *r, const char **wrong)
{
    uint8_t more[4] = {0};
    const int axes = r->begin[3];
    if (r->begun < 16 || (axes == 4 && fread(more, 1, 4, r->file) != 4)) {
        *wrong = "truncated: its header is not whole";
        return EXIT_BAD_INPUT;
    }
    int64_t channels = axes == 4 ? big_endian(r->begin + 8) : 1;
    int64_t height = big_endian(r->begin + (axes == 4 ? 12 : 8));
    int64_t width = axes == 4 ? big_endian(more) : big_endian(r->begin + 12);
    if ((channels != 1 && channels != 3) || height < 1 || width < 1 || height > MOST_PIXELS / width) {
        *wrong = "its images have no sensible size";
        return EXIT_BAD_INPUT;
    }
    r->kind = KIND_IMAGES;
    r->count = big_endian(r->begin + 4);
    r->channels = (int)channels;
    r->height = (int)height;
    r->width = (int)width;
    r->begun = 0;
    return 0;
}

int reader_open(struct reader *r, const char *name, int raw, int channels, int height, int width,
                const char **wrong)
{
    static const uint8_t idx[] = {0, 0, 8};
    memset(r, 0, sizeof *r);
    r->file = strcmp(name, "-") == 0 ? stdin : fopen(name, "rb");
    if (r->file == NULL) {
        *wrong = errno == ENOENT ? "no such file" : "it cannot be opened";
        return EXIT_MISSING;
    }
    if (raw) {
        r->kind = KIND_IMAGES;
        r->endless = 1;
        r->channels = channels;
        r->height = height;
        r->width = width;
    } else {
        r->begun = fread(r->begin, 1, sizeof r->begin, r->file);
        if (ferror(r->file)) {
            *wrong = "it cannot be read";
            return EXIT_MISSING;
        }
        if (r->begun >= 4 && memcmp(r->begin, idx, 3) == 0 && (r->begin[3] == 3 || r->begin[3] == 4)) {
            int failed = read_idx(r, wrong);
            if (failed)
                return failed;
        } else if (r->begun >= 4 && memcmp(r->begin, idx, 2) == 0) {
            *wrong = "an IDX file, but not of images in bytes";
            return EXIT_BAD_INPUT;
        }
    }
    if (r->kind == KIND_IMAGES) {
        r->planes = malloc((size_t)r->channels * (size_t)r->height * (size_t)r->width);
        if (r->planes == NULL) {
            *wrong = "there is not enough memory for one image";
            return EXIT_BAD_INPUT;
        }
    }
    return 0;
}

/* What a file is that is no PGM, PPM or IDX, where it can be told. */
static const char *told(const uint8_t *bytes, size_t count)
{
    if (count > 3 && memcmp(bytes, "\x89PNG", 4) == 0)
        return "a PNG picture, which only the Python runner reads";
    if (count > 2 && memcmp(bytes, "\xff\xd8\xff", 3) == 0)
        return "a JPEG picture, which only the Python runner reads";
    if (count > 1 && bytes[0] == 0x1f && bytes[1] == 0x8b)
        return "compressed by gzip";
    return NULL;
}

int reader_picture(struct reader *r, struct picture *picture, const char **wrong)
{
    size_t room = 1 << 16, count = r->begun;
    uint8_t *bytes = malloc(room);
    if (bytes != NULL)
        memcpy(bytes, r->begin, count);
    while (bytes != NULL) {
        count += fread(bytes + count, 1, room - count, r->file);
        if (count < room || room >= MOST_BYTES)
            break;
        uint8_t *grown = realloc(bytes, room *= 2);
        if (grown == NULL)
            free(bytes);
        bytes = grown;
    }
    if (bytes == NULL)
        *wrong = "there is not enough memory for it";
    else if (ferror(r->file))
        *wrong = "it cannot be read";
    else if (count >= MOST_BYTES)
        *wrong = "larger than any picture of 64,000,000 pixels";
    else if ((*wrong = told(bytes, count)) == NULL)
        *wrong = picture_decode(bytes, count, picture);
    free(bytes);
    return *wrong == NULL ? 0 : EXIT_BAD_INPUT;
}

int reader_next(struct reader *r, const char **wrong)
{
    const size_t size = (size_t)r->channels * (size_t)r->height * (size_t)r->width;
    if (!r->endless && r->next == r->count) {
        if (fread(r->planes, 1, 1, r->file) == 0)
            return 0;
        *wrong = "there is more in it than the images that its header tells of";
        return -1;
    }
    size_t got = fread(r->planes, 1, size, r->file);
    if (got == 0 && r->endless && r->next > 0 && !ferror(r->file))
        return 0;
    r->next++;
    if (got == size)
        return 1;
    *wrong = ferror(r->file) ? "it cannot be read" : "truncated: its last image is not whole";
    return -1;
}

void reader_close(struct reader *r)
{
    if (r->file != NULL && r->file != stdin)
        fclose(r->file);
    free(r->planes);
}
