/* Any bytes as a picture, prepared in both ways: `make fuzz-images CC=clang`, then ./fuzz-images. */
#include "prepare.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    struct picture picture;
    uint8_t out[3 * 12 * 17];
    if (picture_decode(bytes, count, &picture) != NULL)
        return 0;
    if (picture.height > 0 && picture.width <= 4096 / picture.height) { /* time, not safety */
        picture_prepare(&picture, PREPARATION_GLYPH, 1, 12, 17, out);
        picture_prepare(&picture, PREPARATION_PICTURE, 3, 12, 17, out);
    }
    free(picture.pixels);
    return 0;
}
