/* From a picture of any size to the pixels that a network was trained on, in exact integers: the
 * same bytes as the Python runner's (deploy/runner/images.py). */
#ifndef PREPARE_H
#define PREPARE_H

#include "images.h"
#include "runner.h"

/* `out` is uint8 channels x height x width, 1 or 3 channels. Returns 0, or -1 without memory. */
int picture_prepare(const struct picture *picture, enum preparation preparation, int channels,
                    int height, int width, uint8_t *out);

#endif
