/* Calls of a generated library, timed one by one. `latency.py` starts this and talks to it in lines,
 * as to the other runtimes (competitors.py):
 *
 *     calls LIBRARY FUNCTION|SET PIXELS
 *
 * FUNCTION is the model's NAME_predict, SET one of its instruction sets; PIXELS a file of images,
 * one byte a pixel. Says what it is; then "check N" gives the scores of the first N images, "time N"
 * the nanoseconds of each of N calls, "all" the images per second over the whole file and the batch.
 */
#define _POSIX_C_SOURCE 200112L
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runner.h"

typedef int (*predict_function)(const uint8_t *, float *, void *);
typedef int (*set_function)(const struct model *, int, const uint8_t *, float *, void *);

static const struct model *model;
static predict_function predict; /* NULL: by_set in `set` */
static set_function by_set;
static int set = -1;
static unsigned char *pixels;
static size_t image_bytes, images;
static float *scores;
static void *arena;

static void fail(const char *reason)
{
    fprintf(stderr, "calls: %s\n", reason);
    exit(1);
}

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (long long)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void call(size_t image)
{
    const unsigned char *at = pixels + image * image_bytes;
    int result = predict ? predict(at, scores, arena) : by_set(model, set, at, scores, arena);
    if (result != RUNNER_OK)
        fail("a call failed");
}

/* A function's address is no object pointer in C99; POSIX lets it be copied. */
static void open_library(const char *path, const char *name)
{
    const struct model *(*get)(void);
    void *library = dlopen(path, RTLD_NOW), *found;
    if (library == NULL)
        fail(dlerror());
    if ((found = dlsym(library, "library_model")) == NULL)
        fail("no model in this library");
    memcpy(&get, &found, sizeof get);
    model = get();
    if ((found = dlsym(library, "model_predict")) == NULL)
        fail("no model_predict in this library");
    memcpy(&by_set, &found, sizeof by_set);
    for (int i = 0; i < model->set_count; i++)
        if (strcmp(model->sets[i].name, name) == 0)
            set = i;
    if (set >= 0 && !model->sets[set].supported())
        fail("this processor lacks these instructions");
    if (set < 0 && (found = dlsym(library, name)) == NULL)
        fail("no such function or instruction set");
    if (set < 0)
        memcpy(&predict, &found, sizeof predict);
}

static void read_pixels(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0)
        fail("cannot read the pixels");
    size_t bytes = (size_t)ftell(file);
    image_bytes = (size_t)(model->channels * model->height * model->width);
    images = bytes / image_bytes;
    pixels = malloc(bytes + 1);
    rewind(file);
    if (pixels == NULL || images == 0 || fread(pixels, 1, bytes, file) != bytes)
        fail("cannot read the pixels");
    fclose(file);
}

static void time_calls(size_t count)
{
    long long *times = malloc((count + 1) * sizeof *times);
    if (times == NULL)
        fail("no memory");
    for (size_t i = 0; i < count / 10; i++) /* back into the caches */
        call(i % images);
    for (size_t i = 0; i < count; i++) {
        long long start = now();
        call(i % images);
        times[i] = now() - start;
    }
    for (size_t i = 0; i < count; i++)
        printf("%lld ", times[i]);
    free(times);
}

static void answer(const char *word, size_t count)
{
    if (strcmp(word, "check") == 0) {
        for (size_t i = 0; i < count && i < images; i++) {
            call(i);
            for (int k = 0; k < model->label_count; k++)
                printf("%.9g ", (double)scores[k]);
        }
    } else if (strcmp(word, "time") == 0) {
        time_calls(count);
    } else if (strcmp(word, "all") == 0) {
        long long start = now();
        for (size_t i = 0; i < images; i++)
            call(i);
        printf("%.1f 1", (double)images * 1e9 / (double)(now() - start));
    } else {
        fail("unknown command");
    }
    printf("\n");
    fflush(stdout);
}

int main(int count, char **arguments)
{
    char word[16], line[64];
    if (count != 4)
        fail("usage: calls LIBRARY FUNCTION|SET PIXELS");
    open_library(arguments[1], arguments[2]);
    read_pixels(arguments[3]);
    scores = malloc((size_t)model->label_count * sizeof *scores);
    if (scores == NULL || posix_memalign(&arena, RUNNER_ALIGNMENT, model->arena + 1) != 0)
        fail("no memory");
    printf("%s\n", model->version);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        unsigned long number = 0;
        if (sscanf(line, "%15s %lu", word, &number) >= 1)
            answer(word, (size_t)number);
    }
    return 0;
}
