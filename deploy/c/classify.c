#include "classify.h"

#include "model.h"
#include "output.h"
#include "prepare.h"
#include "reader.h"

#include <stdlib.h>

struct answers {
    const struct options *options;
    int set;
    void *arena;
    int exit_code, answered;
    const char **failed; /* what was wrong with each file, NULL for none, and its exit code */
    int *codes;
};

static void fail(struct answers *a, int file, int code, const char *wrong)
{
    const char *mend = code == EXIT_MISSING ? "" : "; give a PGM, PPM or IDX file";
    complain(a->options->files[file], wrong, mend);
    a->exit_code = code;
    a->failed[file] = wrong;
    a->codes[file] = code;
}

static void answer_json(const struct answers *a, const char *file, int64_t number, int blank,
                        const double *chances, const int *order, int top)
{
    put(stdout, a->answered ? ", " : "");
    put_key("{file");
    put_json(file);
    if (number >= 0) {
        put_key("image");
        put_integer(stdout, number);
    }
    put_key("blank");
    put(stdout, blank ? "true" : "false");
    put_key("label");
    put_json(MODEL.labels[order[0]]);
    put_key("probability");
    put_decimal(stdout, chances[order[0]], 9);
    put_key("top");
    for (int i = 0; i < top; i++) {
        put(stdout, i ? ", [" : "[[");
        put_json(MODEL.labels[order[i]]);
        put(stdout, ", ");
        put_decimal(stdout, chances[order[i]], 9);
        putchar(']');
    }
    put(stdout, "]}");
}

/* One image's answer. `number` is its place in a file of many, -1 for a picture. */
static void answer(struct answers *a, const char *file, int64_t number, const uint8_t *pixels)
{
    float scores[MODEL_LABELS];
    double chances[MODEL_LABELS];
    int order[MODEL_LABELS], blank = MODEL.preparation == PREPARATION_GLYPH, top = a->options->top;
    model_predict(&MODEL, a->set, pixels, scores, a->arena);
    for (int i = 0; i < MODEL_LABELS; i++)
        chances[i] = (double)scores[i];
    output_probabilities(&MODEL, chances);
    output_order(chances, MODEL_LABELS, order);
    for (int i = 0; i < MODEL_PIXELS && blank; i++)
        blank = pixels[i] == 0;
    if (blank && number < 0) {
        put(stderr, "note: ");
        put(stderr, file);
        put(stderr, ": no ink found, the answer means nothing\n");
    }
    top = top < MODEL_LABELS ? top : MODEL_LABELS;
    if (a->options->json) {
        answer_json(a, file, number, blank, chances, order, top);
    } else if (number >= 0) {
        put(stdout, MODEL.labels[order[0]]);
        putchar('\t');
        put_decimal(stdout, (double)scores[order[0]], 4);
        putchar('\n');
    } else {
        put(stdout, file);
        putchar(':');
        for (int i = 0; i < top; i++) {
            put(stdout, i ? "  " : " ");
            put(stdout, MODEL.labels[order[i]]);
            putchar(' ');
            put_decimal(stdout, 100.0 * chances[order[i]], 1);
            putchar('%');
        }
        putchar('\n');
    }
    a->answered++;
}

/* An image of a file of many: as it is where it has the model's shape, else prepared as a picture. */
static const uint8_t *fitted(const struct reader *r, struct picture *picture, uint8_t *pixels)
{
    const size_t plane = (size_t)r->height * (size_t)r->width;
    if (r->channels == MODEL_CHANNELS && r->height == MODEL_HEIGHT && r->width == MODEL_WIDTH)
        return r->planes;
    for (size_t i = 0; i < plane; i++)
        for (int c = 0; c < r->channels; c++)
            picture->pixels[i * (size_t)r->channels + (size_t)c] = r->planes[(size_t)c * plane + i];
    if (picture_prepare(picture, MODEL.preparation, MODEL_CHANNELS, MODEL_HEIGHT, MODEL_WIDTH, pixels))
        return NULL;
    return pixels;
}

static void classify_images(struct answers *a, int file, struct reader *r)
{
    static uint8_t pixels[MODEL_PIXELS];
    const char *wrong = NULL;
    struct picture picture = {r->height, r->width, r->channels, NULL};
    int more = 1;
    picture.pixels = malloc((size_t)r->channels * (size_t)r->height * (size_t)r->width);
    if (picture.pixels == NULL)
        wrong = "there is not enough memory for one image";
    while (wrong == NULL && (more = reader_next(r, &wrong)) > 0) {
        const uint8_t *image = fitted(r, &picture, pixels);
        if (image == NULL)
            wrong = "there is not enough memory for one image";
        else
            answer(a, a->options->files[file], r->next - 1, image);
    }
    free(picture.pixels);
    if (wrong != NULL)
        fail(a, file, EXIT_BAD_INPUT, wrong);
}

static void classify_file(struct answers *a, int file)
{
    static uint8_t pixels[MODEL_PIXELS];
    const char *name = a->options->files[file], *wrong = NULL;
    struct reader reader;
    struct picture picture;
    int code = reader_open(&reader, name, a->options->raw, MODEL_CHANNELS, MODEL_HEIGHT, MODEL_WIDTH,
                           &wrong);
    if (code == 0 && reader.kind == KIND_IMAGES) {
        classify_images(a, file, &reader);
    } else if (code == 0 && (code = reader_picture(&reader, &picture, &wrong)) == 0) {
        if (picture_prepare(&picture, MODEL.preparation, MODEL_CHANNELS, MODEL_HEIGHT, MODEL_WIDTH, pixels))
            fail(a, file, EXIT_BAD_INPUT, "there is not enough memory for it");
        else
            answer(a, name, -1, pixels);
        free(picture.pixels);
    }
    if (code != 0)
        fail(a, file, code, wrong);
    reader_close(&reader);
}

int classify(const struct options *options, int set, void *arena)
{
    struct answers a = {options, set, arena, 0, 0, NULL, NULL};
    a.failed = calloc((size_t)options->file_count, sizeof *a.failed);
    a.codes = calloc((size_t)options->file_count, sizeof *a.codes);
    if (a.failed == NULL || a.codes == NULL) {
        complain("classify", "there is not enough memory", "; give fewer files");
        return EXIT_BAD_INPUT;
    }
    if (options->json) {
        put_key("{runtime");
        put(stdout, "\"c ");
        put(stdout, MODEL.version);
        put(stdout, " (");
        put(stdout, MODEL.sets[set].name);
        put(stdout, ")\"");
        put_key("answers");
        putchar('[');
    }
    for (int i = 0; i < options->file_count; i++)
        classify_file(&a, i);
    if (options->json) {
        int errors = 0;
        putchar(']');
        put_key("errors");
        putchar('[');
        for (int i = 0; i < options->file_count; i++) {
            if (a.failed[i] == NULL)
                continue;
            put(stdout, errors++ ? ", " : "");
            put_key("{file");
            put_json(options->files[i]);
            put_key("message");
            put_json(a.failed[i]);
            put_key("exit_code");
            put_integer(stdout, a.codes[i]);
            putchar('}');
        }
        put(stdout, "]}\n");
    }
    free(a.failed);
    free(a.codes);
    return a.exit_code;
}
