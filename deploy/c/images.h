/* Pictures in memory, and how PGM and PPM become some. */
#ifndef IMAGES_H
#define IMAGES_H

#include <stddef.h>
#include <stdint.h>

#define MOST_PIXELS 64000000 /* beyond it, a file is not a picture but a trap */

/* uint8 height x width x channels, 1 or 3 channels; `pixels` is freed by its owner. */
struct picture {
    int height, width, channels;
    uint8_t *pixels;
};

/* P2, P3, P5 or P6 of any maximum up to 255, scaled to 255. Returns NULL, or what is wrong. */
const char *picture_decode(const uint8_t *bytes, size_t count, struct picture *picture);

#endif
