/* Files: a picture, or many images of one size that are read one by one. */
#ifndef READER_H
#define READER_H

#include "images.h"

#include <stdio.h>

enum kind { KIND_PICTURE, KIND_IMAGES };

/* An open file. For KIND_IMAGES, `count` images of channels x height x width planes follow, or with
 * `endless` as many as there are. */
struct reader {
    FILE *file;
    enum kind kind;
    uint8_t begin[16]; /* what was read to find out */
    size_t begun;
    int64_t count, next;
    int channels, height, width, endless;
    uint8_t *planes;
};

/* Open NAME, - for stdin. With `raw`, it has images of this shape, bare. Returns 0, or an exit code
 * after having set `wrong`; reader_close is to be called in any case. */
int reader_open(struct reader *reader, const char *name, int raw, int channels, int height, int width,
                const char **wrong);

/* The only picture of a KIND_PICTURE. Returns 0 or an exit code. */
int reader_picture(struct reader *reader, struct picture *picture, const char **wrong);

/* The next image, in `planes`. Returns 1, 0 at the end, or -1 with `wrong` set. */
int reader_next(struct reader *reader, const char **wrong);

void reader_close(struct reader *reader);

#endif
