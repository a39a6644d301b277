/* Runs kernels on arrays from standard input: cases.h, which the test writes, has one function for
 * each case, with its geometry constant as in generated layers. Every array is memory of its own
 * and no larger than said, so that sanitizers see what lies beyond it. */
#include "runner.h"

#include "kernels.h"

#include "cpu.h"

#include <stdio.h>
#include <stdlib.h>

enum { INPUT, WEIGHTS, BIAS, SCALE, OUTPUT, ARRAYS };

typedef void (*kernel)(void *const *array);

#include "cases.h"

#include "vector_end.h"

static void *array_read(uint32_t *bytes)
{
    if (fread(bytes, sizeof *bytes, 1, stdin) != 1)
        exit(2);
    void *array = malloc(*bytes > 0 ? *bytes : 1);
    if (array == NULL || fread(array, 1, *bytes, stdin) != *bytes)
        exit(2);
    return array;
}

int main(int count, char **arguments)
{
    if (count > 1 && strcmp(arguments[1], "--supported") == 0)
        return SUPPORTED() ? 0 : 1;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        void *array[ARRAYS];
        uint32_t bytes = 0;
        for (int j = 0; j < ARRAYS; j++)
            array[j] = array_read(&bytes);
        cases[i](array);
        if (fwrite(array[OUTPUT], 1, bytes, stdout) != bytes)
            return 2;
        for (int j = 0; j < ARRAYS; j++)
            free(array[j]);
    }
    return 0;
}
