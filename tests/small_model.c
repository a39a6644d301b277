/* A model by hand, as generators write them: two inputs, three layers, memory that is shared.
 *
 *   sum = a + b, int8      doubled = 2 sum, float32      scores = doubled - b, float32
 *
 * `a` and `doubled` have the same memory, and elements of images lie H x W x C with margins.
 */
#include "runner.h"

#include <string.h>

enum { CHANNELS = 2, HEIGHT = 2, WIDTH = 3, ALL = 12, ROW = (WIDTH + 2) * CHANNELS };

static int place(int number)
{
    int column = number % WIDTH, row = number / WIDTH % HEIGHT, channel = number / WIDTH / HEIGHT;
    return (row * WIDTH + column) * CHANNELS + channel;
}

static int integer(const unsigned char *arena, size_t offset, int place)
{
    return (int8_t)(arena[offset + (size_t)place] ^ FLIP);
}

static int wide(int place) { return place / (WIDTH * CHANNELS) * ROW + place % (WIDTH * CHANNELS); }

static void add(unsigned char *arena)
{
    for (int i = 0; i < ALL; i++) {
        int q = integer(arena, 0 + ROW + CHANNELS, wide(i)) + integer(arena, 128, i);
        q = q > 127 ? 127 : q < -128 ? -128 : q;
        arena[192 + i] = (unsigned char)((uint8_t)q ^ FLIP);
    }
}

static void twice(unsigned char *arena)
{
    float doubled[ALL];
    for (int i = 0; i < ALL; i++)
        doubled[i] = 2.0f * (float)integer(arena, 192, place(i));
    memcpy(arena, doubled, sizeof doubled);
}

static void subtract(unsigned char *arena)
{
    float scores[ALL];
    memcpy(scores, arena, sizeof scores);
    for (int i = 0; i < ALL; i++)
        scores[i] -= (float)integer(arena, 128, place(i));
    memcpy(arena + 256, scores, sizeof scores);
}

static void wrong(unsigned char *arena) { memset(arena + 192, 0, 12); }

static int yes(void) { return 1; }
static int no(void) { return 0; }

static const struct value values[] = {
    {"a", VALUE_INT8, 4, {1, 2, 2, 3}, {40, 1, ROW, 2}, 0, 4 * ROW, ROW + CHANNELS, 0.5f, -3},
    {"b", VALUE_INT8, 4, {1, 2, 2, 3}, {12, 1, 6, 2}, 128, 12, 128, 0.25f, 0},
    {"sum", VALUE_UINT8, 4, {1, 2, 2, 3}, {12, 1, 6, 2}, 192, 12, 192, 0.125f, 128},
    {"doubled", VALUE_FLOAT, 2, {1, 12}, {12, 1}, 0, 48, 0, 0.0f, 0},
    {"scores", VALUE_FLOAT, 2, {1, 12}, {12, 1}, 256, 48, 256, 0.0f, 0},
};
static const int in_sum[] = {0, 1}, in_doubled[] = {2}, in_scores[] = {3, 1};
static const struct layer layers[] = {
    {"sum", "Add", in_sum, 2, 2},
    {"doubled", "Mul", in_doubled, 1, 3},
    {"scores", "Sub", in_scores, 2, 4},
};
static const layer_function portable[] = {add, twice, subtract}, other[] = {wrong, twice, subtract};
static const struct instruction_set sets[] = {
    {"portable", portable, NULL, yes},
    {"avx2", other, NULL, yes},
    {"neon", portable, NULL, no},
};
static const int inputs[] = {0, 1}, outputs[] = {4, 2};
static const char *const labels[] = {"only"};
static const struct model model = {
    .name = "small", .precision = "int8", .dataset = "none", .version = "9.8", .sha256 = "",
    .labels = labels, .label_count = 1, .channels = CHANNELS, .height = HEIGHT, .width = WIDTH,
    .values = values, .value_count = 5, .layers = layers, .layer_count = 3,
    .inputs = inputs, .outputs = outputs, .input_count = 2, .output_count = 2,
    .sets = sets, .set_count = 3, .arena = 320 + 64,
};

const struct model *library_model(void);
const struct model *library_model(void) { return &model; }

const char *library_contract(void);
const char *library_contract(void) { return CONTRACT; }
