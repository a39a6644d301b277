/* Any bytes as pixels, through the instruction sets that are here: they must agree, bit for bit where
 * the model is int8. `make fuzz-predict CC=clang`, then ./fuzz-predict. */
#include "model.h"

#include <stdlib.h>
#include <string.h>

static unsigned char arena[MODEL_ARENA] __attribute__((aligned(RUNNER_ALIGNMENT)));

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    const struct value *output = &MODEL.values[MODEL.outputs[0]];
    uint8_t pixels[MODEL_PIXELS] = {0};
    float first[MODEL_LABELS], scores[MODEL_LABELS];
    memcpy(pixels, bytes, count < MODEL_PIXELS ? count : MODEL_PIXELS);
    const int best = model_best(&MODEL);
    /* The slow first set for one input of 64, another one for all. */
    int other = count % 64 == 0 ? 0 : best - (best > 0);
    memset(arena, (int)(count & 0xff), sizeof arena); /* nothing depends on what was there */
    model_predict(&MODEL, best, pixels, first, arena);
    model_predict(&MODEL, other, pixels, scores, arena);
    if (output->type != VALUE_FLOAT && memcmp(first, scores, sizeof scores) != 0)
        abort();
    return 0;
}
