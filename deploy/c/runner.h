/* What a generated model is made of, and what can be done with it.
 *
 * A model is constant data: values that lie in one arena, and layers that compute one value each.
 * Nothing here allocates, prints or writes to a global: as many threads as there are arenas may
 * run the same model at once.
 */
#ifndef RUNNER_H
#define RUNNER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* An int8 value q is stored as the byte (uint8_t)q ^ FLIP. On x86-64 products of bytes are of an
 * unsigned and a signed one, so activations are stored as q + 128 there. */
#if defined(__x86_64__)
#define FLIP 0x80u
#else
#define FLIP 0x00u
#endif
/* The bias with the input's zero point folded in, for signed and for unsigned bytes. */
#define BIAS(with_signed, with_unsigned) (FLIP ? (with_unsigned) : (with_signed))

#define RUNNER_AXES 6        /* the most that a value has */
#define RUNNER_ALIGNMENT 64u /* of an arena, in bytes */

enum value_type { VALUE_FLOAT, VALUE_INT8, VALUE_UINT8 };

/* A value of the graph. `shape` and `stride` (in elements) are by axis as ONNX has them: N x C x H
 * x W, wherever the elements lie. Its storage, margins included, is `bytes` at `begin`; its first
 * element is at `offset`. A VALUE_UINT8 v is stored as the int8 value v - 128, and `zero_point` is
 * that of the plain type. real = scale * (integer - zero_point); scale is 0 for floats. */
struct value {
    const char *name;
    enum value_type type;
    int rank;
    int shape[RUNNER_AXES];
    int stride[RUNNER_AXES];
    size_t begin, bytes, offset;
    float scale;
    int zero_point;
};

/* A layer computes `output` from `inputs`, indices of values. `operators` are ONNX's, like
 * "Conv + Relu + MaxPool"; the values between them are not kept. */
struct layer {
    const char *name;
    const char *operators;
    const int *inputs;
    int input_count;
    int output;
};

typedef void (*layer_function)(unsigned char *arena);

/* The same layers, compiled for one instruction set. `place` puts uint8 pixels C x H x W, 0 to 255,
 * into the arena as the model's input; it is NULL for a model without a contract. */
struct instruction_set {
    const char *name;
    const layer_function *layers;
    void (*place)(const uint8_t *pixels, unsigned char *arena);
    int (*supported)(void);
};

/* What a value must be when the golden image has gone through: every `every`-th element in ONNX's
 * order. Integers must be equal; floats may be off by `bounds`. */
struct golden {
    int value;
    int count, every;
    const int8_t *integers;
    const float *floats;
    const float *bounds;
};

enum preparation { PREPARATION_NONE, PREPARATION_GLYPH, PREPARATION_PICTURE };

struct model {
    const char *name, *precision, *dataset;
    const char *version; /* of the pipeline that generated it */
    const char *sha256;  /* of the ONNX file that it was generated from */
    const char *const *labels;
    int label_count;
    int channels, height, width; /* of the picture */
    enum preparation preparation;
    int probabilities;  /* whether the scores are probabilities, else logits */
    double temperature; /* by which logits are divided before they become some */
    const struct value *values;
    int value_count;
    const struct layer *layers;
    int layer_count;
    const int *inputs, *outputs; /* indices of values */
    int input_count, output_count;
    const struct instruction_set *sets; /* the last one that is supported is the best */
    int set_count;
    size_t arena; /* bytes */
    const uint8_t *golden_pixels;
    const struct golden *goldens;
    int golden_count;
};

/* Where and by how much a layer first was wrong. */
struct mismatch {
    int layer; /* -1: none */
    int position;
    double actual, expected, bound;
    int compared; /* layers */
};

enum { RUNNER_OK = 0, RUNNER_WRONG = 1, RUNNER_UNSUPPORTED = 4 };

/* Index of the best instruction set that this processor has. */
int model_best(const struct model *model);

/* How many elements a value has. */
int value_elements(const struct value *value);

/* Copy a value from or to plain memory: ONNX's order, its plain type (float, int8_t, uint8_t). */
void model_put(const struct model *model, int value, const void *plain, void *arena);
void model_get(const struct model *model, int value, const void *arena, void *plain);

/* The same with real numbers, quantized (halves to even) or dequantized in float32. */
void model_put_real(const struct model *model, int value, const float *real, void *arena);
void model_get_real(const struct model *model, int value, const void *arena, float *real);

/* Compute one layer, or all, from what lies in the arena. */
void model_step(const struct model *model, int set, int layer, void *arena);
void model_run(const struct model *model, int set, void *arena);

/* Pixels C x H x W to real scores, one for each label. Returns RUNNER_OK, or RUNNER_UNSUPPORTED
 * where the model has no contract or this processor lacks the instructions. */
int model_predict(const struct model *model, int set, const uint8_t *pixels, float *scores,
                  void *arena);

/* Compare every layer with its golden value. Returns RUNNER_OK or RUNNER_WRONG; nothing compared
 * is wrong, too. */
int model_selftest(const struct model *model, int set, void *arena, struct mismatch *mismatch);

#ifdef __cplusplus
}
#endif

#endif
