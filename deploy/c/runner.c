/* What can be done with any generated model: see runner.h. */
#include "runner.h"

#include <math.h>
#include <string.h>

int model_best(const struct model *model)
{
    int set = model->set_count - 1;
    while (set > 0 && !model->sets[set].supported())
        set--;
    return set;
}

int value_elements(const struct value *value)
{
    int elements = 1;
    for (int axis = 0; axis < value->rank; axis++)
        elements *= value->shape[axis];
    return elements;
}

/* Where an element lies, counted in elements from the first, given its number in ONNX's order. */
static int place_of(const struct value *value, int number)
{
    int place = 0;
    for (int axis = value->rank - 1; axis >= 0; axis--) {
        place += number % value->shape[axis] * value->stride[axis];
        number /= value->shape[axis];
    }
    return place;
}

/* The byte that stands for the stored integer of a plain one, and back: both are this. */
static uint8_t flipped(const struct value *value, uint8_t byte)
{
    return (uint8_t)(byte ^ FLIP ^ (value->type == VALUE_UINT8 ? 0x80u : 0u));
}

/* What lies around a value, for windows that reach beyond it: zero, as an integer or a float. */
static void fill_margins(const struct value *value, unsigned char *arena)
{
    int zero = 0;
    if (value->type != VALUE_FLOAT)
        zero = flipped(value, (uint8_t)value->zero_point);
    memset(arena + value->begin, zero, value->bytes);
}

void model_put(const struct model *model, int index, const void *plain, void *arena)
{
    const struct value *value = &model->values[index];
    unsigned char *bytes = arena;
    fill_margins(value, bytes);
    for (int i = 0; i < value_elements(value); i++) {
        size_t place = (size_t)place_of(value, i);
        if (value->type == VALUE_FLOAT)
            memcpy(bytes + value->offset + 4 * place, (const float *)plain + i, sizeof(float));
        else
            bytes[value->offset + place] = flipped(value, ((const uint8_t *)plain)[i]);
    }
}

void model_get(const struct model *model, int index, const void *arena, void *plain)
{
    const struct value *value = &model->values[index];
    const unsigned char *bytes = arena;
    for (int i = 0; i < value_elements(value); i++) {
        size_t place = (size_t)place_of(value, i);
        if (value->type == VALUE_FLOAT)
            memcpy((float *)plain + i, bytes + value->offset + 4 * place, sizeof(float));
        else
            ((uint8_t *)plain)[i] = flipped(value, bytes[value->offset + place]);
    }
}

void model_put_real(const struct model *model, int index, const float *real, void *arena)
{
    const struct value *value = &model->values[index];
    unsigned char *bytes = arena;
    const float low = value->type == VALUE_INT8 ? -128.0f : 0.0f;
    if (value->type == VALUE_FLOAT) {
        model_put(model, index, real, arena);
        return;
    }
    fill_margins(value, bytes);
    for (int i = 0; i < value_elements(value); i++) {
        float integer = rintf(real[i] / value->scale) + (float)value->zero_point;
        integer = fminf(fmaxf(integer, low), low + 255.0f);
        bytes[value->offset + (size_t)place_of(value, i)] =
            flipped(value, (uint8_t)(int)integer);
    }
}

void model_get_real(const struct model *model, int index, const void *arena, float *real)
{
    const struct value *value = &model->values[index];
    const unsigned char *bytes = arena;
    if (value->type == VALUE_FLOAT) {
        model_get(model, index, arena, real);
        return;
    }
    for (int i = 0; i < value_elements(value); i++) {
        uint8_t byte = flipped(value, bytes[value->offset + (size_t)place_of(value, i)]);
        int integer = value->type == VALUE_INT8 ? (int8_t)byte : byte;
        real[i] = (float)(integer - value->zero_point) * value->scale;
    }
}

void model_step(const struct model *model, int set, int layer, void *arena)
{
    model->sets[set].layers[layer](arena);
}

void model_run(const struct model *model, int set, void *arena)
{
    for (int layer = 0; layer < model->layer_count; layer++)
        model->sets[set].layers[layer](arena);
}

int model_predict(const struct model *model, int set, const uint8_t *pixels, float *scores,
                  void *arena)
{
    if (set < 0 || set >= model->set_count || model->sets[set].place == NULL)
        return RUNNER_UNSUPPORTED;
    model->sets[set].place(pixels, arena);
    model_run(model, set, arena);
    model_get_real(model, model->outputs[0], arena, scores);
    return RUNNER_OK;
}

/* The element of a value with this number, as a number. */
static double element(const struct value *value, const unsigned char *arena, int number)
{
    const unsigned char *bytes = arena + value->offset;
    size_t place = (size_t)place_of(value, number);
    if (value->type == VALUE_FLOAT) {
        float single;
        memcpy(&single, bytes + 4 * place, sizeof single);
        return (double)single;
    }
    uint8_t byte = flipped(value, bytes[place]);
    return value->type == VALUE_INT8 ? (int8_t)byte : byte;
}

/* Compare one layer's value; returns whether it is as it must be. */
static int holds(const struct value *value, const struct golden *golden,
                 const unsigned char *arena, struct mismatch *mismatch)
{
    for (int i = 0; i < golden->count; i++) {
        int number = i * golden->every;
        double actual = element(value, arena, number), expected, bound = 0.0;
        if (golden->floats != NULL) {
            expected = (double)golden->floats[i];
            bound = (double)golden->bounds[i];
        } else if (value->type == VALUE_UINT8) {
            expected = (uint8_t)golden->integers[i];
        } else {
            expected = golden->integers[i];
        }
        if (!(fabs(actual - expected) <= bound)) { /* a NaN is never within */
            mismatch->position = number;
            mismatch->actual = actual;
            mismatch->expected = expected;
            mismatch->bound = bound;
            return 0;
        }
    }
    return golden->count > 0;
}

int model_selftest(const struct model *model, int set, void *arena, struct mismatch *mismatch)
{
    struct mismatch none = {-1, 0, 0.0, 0.0, 0.0, 0};
    *mismatch = none;
    if (set < 0 || set >= model->set_count || model->sets[set].place == NULL)
        return RUNNER_UNSUPPORTED;
    model->sets[set].place(model->golden_pixels, arena);
    for (int layer = 0; layer < model->layer_count; layer++) {
        int output = model->layers[layer].output;
        model_step(model, set, layer, arena);
        for (int i = 0; i < model->golden_count; i++) {
            if (model->goldens[i].value != output)
                continue;
            mismatch->compared++;
            if (!holds(&model->values[output], &model->goldens[i], arena, mismatch)) {
                mismatch->layer = layer;
                return RUNNER_WRONG;
            }
        }
    }
    return mismatch->compared == model->golden_count ? RUNNER_OK : RUNNER_WRONG;
}
