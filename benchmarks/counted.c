/* In the place of a generated folder's main.c: `classify N` makes N inferences of the golden image
 * and prints the label, so that instructions per inference are a difference of two such runs. */
#include <stdio.h>
#include <stdlib.h>

#include "model.h"

static union {
    unsigned char bytes[MODEL_ARENA + 64];
    long double aligned;
} memory;

int main(int count, char **arguments)
{
    static float scores[MODEL_LABELS];
    unsigned char *arena = memory.bytes + (64 - (uintptr_t)memory.bytes % 64) % 64;
    long inferences = count > 1 ? strtol(arguments[1], NULL, 10) : 0;
    int best = 0;
    for (long i = 0; i < inferences; i++)
        if (PREDICT(MODEL.golden_pixels, scores, arena) != RUNNER_OK)
            return 1;
    for (int i = 1; i < MODEL_LABELS; i++)
        if (scores[i] > scores[best])
            best = i;
    printf("%s\n", MODEL.labels[best]);
    return 0;
}
