/* classify: pictures to labels, by the model beside it. */
#include "model.h"

#include "bench.h"
#include "options.h"
#include "output.h"
#include "prepare.h"
#include "reader.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned char arena[MODEL_ARENA] __attribute__((aligned(RUNNER_ALIGNMENT)));

struct answers {
    const struct options *options;
    int set, exit_code, answered;
    const char **failed; /* what was wrong with each file, NULL for none, and its exit code */
    int *codes;
};

/* One line on stderr: what is wrong with what, and what mends it. */
static void complain(const char *subject, const char *wrong, const char *mend)
{
    const char *parts[] = {"error: ", subject, ": ", wrong, mend, "\n"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        put(stderr, parts[i]);
}

/* `"name": `, and a comma before it unless it is the first of an object. */
static void key(const char *name)
{
    if (name[0] != '{')
        put(stdout, ", ");
    else
        putchar(*name++);
    put_json(name);
    put(stdout, ": ");
}

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
    key("{file");
    put_json(file);
    if (number >= 0) {
        key("image");
        put_integer(stdout, number);
    }
    key("blank");
    put(stdout, blank ? "true" : "false");
    key("label");
    put_json(MODEL.labels[order[0]]);
    key("probability");
    put_decimal(stdout, chances[order[0]], 9);
    key("top");
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
    model_predict(&MODEL, a->set, pixels, scores, arena);
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

static int classify(const struct options *options, int set)
{
    struct answers a = {options, set, 0, 0, NULL, NULL};
    a.failed = calloc((size_t)options->file_count, sizeof *a.failed);
    a.codes = calloc((size_t)options->file_count, sizeof *a.codes);
    if (a.failed == NULL || a.codes == NULL) {
        complain("classify", "there is not enough memory", "; give fewer files");
        return EXIT_BAD_INPUT;
    }
    if (options->json) {
        key("{runtime");
        put(stdout, "\"c ");
        put(stdout, MODEL.version);
        put(stdout, " (");
        put(stdout, MODEL.sets[set].name);
        put(stdout, ")\"");
        key("answers");
        putchar('[');
    }
    for (int i = 0; i < options->file_count; i++)
        classify_file(&a, i);
    if (options->json) {
        int errors = 0;
        putchar(']');
        key("errors");
        putchar('[');
        for (int i = 0; i < options->file_count; i++) {
            if (a.failed[i] == NULL)
                continue;
            put(stdout, errors++ ? ", " : "");
            key("{file");
            put_json(options->files[i]);
            key("message");
            put_json(a.failed[i]);
            key("exit_code");
            put_integer(stdout, a.codes[i]);
            putchar('}');
        }
        put(stdout, "]}\n");
    }
    free(a.failed);
    free(a.codes);
    return a.exit_code;
}

static int selftest(const struct options *options, int set)
{
    struct mismatch m;
    const int passed = model_selftest(&MODEL, set, arena, &m) == RUNNER_OK;
    const struct {
        const char *key, *before;
        double value;
    } numbers[] = {{"position", ": element ", m.position},
                   {"actual", " is ", m.actual},
                   {"expected", ", expected ", m.expected},
                   {"bound", ", may be off by ", m.bound}};
    if (options->json) {
        key("{passed");
        put(stdout, passed ? "true" : "false");
        key("set");
        put_json(MODEL.sets[set].name);
        key("layers");
        put_integer(stdout, MODEL.layer_count);
        key("compared");
        put_integer(stdout, m.compared);
    } else {
        put(stdout, passed ? "passed: " : "FAILED: ");
        put_integer(stdout, m.compared);
        put(stdout, " of ");
        put_integer(stdout, MODEL.layer_count);
        put(stdout, " layers compared, ");
        put(stdout, MODEL.precision);
        put(stdout, ", ");
        put(stdout, MODEL.sets[set].name);
    }
    if (m.layer >= 0) {
        if (options->json) {
            key("layer");
            put_json(MODEL.layers[m.layer].name);
        } else {
            put(stdout, "\nlayer ");
            put(stdout, MODEL.layers[m.layer].name);
        }
        for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
            if (options->json)
                key(numbers[i].key);
            else
                put(stdout, numbers[i].before);
            put_decimal(stdout, numbers[i].value, numbers[i].value == (double)(int)numbers[i].value ? 0 : 9);
        }
    }
    put(stdout, options->json ? "}\n" : "\n");
    return passed ? 0 : EXIT_WRONG;
}

static int bench(const struct options *options, int set)
{
    struct timing t;
    if (bench_run(&MODEL, set, options->count, arena, &t)) {
        complain("--bench", "there is not enough memory", "; give a smaller --count");
        return EXIT_USAGE;
    }
    const struct {
        const char *key, *label;
        double value;
    } rows[] = {{"first_us", "first (us)   ", t.first}, {"min_us", "least (us)   ", t.least},
                {"p50_us", "p50 (us)     ", t.p50},     {"p90_us", "p90 (us)     ", t.p90},
                {"p99_us", "p99 (us)     ", t.p99},     {"p50_time_stamps", "p50 (stamps) ", t.stamps}};
    if (options->json) {
        key("{set");
        put_json(MODEL.sets[set].name);
        key("inferences");
        put_integer(stdout, t.inferences);
    } else {
        put(stdout, MODEL.sets[set].name);
        put(stdout, ", ");
        put_integer(stdout, t.inferences);
        put(stdout, " inferences, one image each\n");
    }
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (options->json)
            key(rows[i].key);
        else
            put(stdout, rows[i].label);
        put_decimal(stdout, rows[i].value, 2);
        put(stdout, options->json ? "" : "\n");
    }
    put(stdout, options->json ? "}\n" : "");
    return 0;
}

static int version(const struct options *options)
{
    const struct {
        const char *key, *label, *value;
    } rows[] = {{"{model", "model         ", MODEL.name},
                {"precision", "precision     ", MODEL.precision},
                {"dataset", "trained on    ", MODEL.dataset},
                {"pipeline", "generated by  pipeline ", MODEL.version},
                {"sha256", "from ONNX     ", MODEL.sha256}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (options->json) {
            key(rows[i].key);
            put_json(rows[i].value);
        } else if (rows[i].value[0] != '\0') {
            put(stdout, rows[i].label);
            put(stdout, rows[i].value);
            putchar('\n');
        }
    }
    if (options->json)
        key("sets");
    put(stdout, options->json ? "[" : "instructions  ");
    for (int i = 0, found = 0; i < MODEL.set_count; i++)
        if (MODEL.sets[i].supported()) {
            put(stdout, found++ ? ", " : "");
            if (options->json)
                put_json(MODEL.sets[i].name);
            else
                put(stdout, MODEL.sets[i].name);
        }
    put(stdout, options->json ? "]}\n" : "\n");
    return 0;
}

/* The index of the instruction set that is asked for. Returns an exit code. */
static int choose(const struct options *options, int *set)
{
    *set = model_best(&MODEL);
    for (int i = 0; options->set != NULL && i < MODEL.set_count; i++)
        if (strcmp(options->set, MODEL.sets[i].name) == 0) {
            *set = i;
            if (MODEL.sets[i].supported())
                return 0;
            complain(options->set, "this processor has no such instructions", "; see classify --version");
            return EXIT_MISSING;
        }
    if (options->set == NULL)
        return 0;
    complain(options->set, "unknown instruction set", "; see classify --version");
    return EXIT_USAGE;
}

int main(int count, char **arguments)
{
    struct options options;
    int set, code = options_parse(count, arguments, &options);
    if (code != 0 || (code = choose(&options, &set)) != 0)
        return code;
    switch (options.task) {
    case TASK_HELP: options_help(); break;
    case TASK_VERSION: code = version(&options); break;
    case TASK_SELFTEST: code = selftest(&options, set); break;
    case TASK_BENCH: code = bench(&options, set); break;
    default: code = classify(&options, set);
    }
    if (fflush(stdout) != 0 || ferror(stdout)) {
        complain("stdout", "it cannot be written", "; make room, or write elsewhere");
        return EXIT_BAD_INPUT;
    }
    return code;
}
