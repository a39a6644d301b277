/* Answers: scores to probabilities, labels in order, text and JSON. */
#ifndef OUTPUT_H
#define OUTPUT_H

#include "runner.h"

#include <stdio.h>

/* Scores become probabilities, in place: softmax of logits, at the model's
 * temperature. */
void output_probabilities(const struct model *model, double *scores);

/* The labels' numbers by falling probability; equal ones in their own order. */
void output_order(const double *probabilities, int count, int *order);

/* Text and numbers to a stream, without the weight of printf: it and the long doubles that it counts
 * in are more than a tenth of a static executable. */
void put(FILE *to, const char *text);
void put_integer(FILE *to, int64_t value);
void put_decimal(FILE *to, double value, int decimals); /* decimals up to 9; NaN is null */

/* A string literal of JSON, on stdout. */
void put_json(const char *text);

/* `"name": ` on stdout, and a comma before it; or the { that begins the name. */
void put_key(const char *name);

/* One line on stderr: what is wrong with what, and what mends it. */
void complain(const char *subject, const char *wrong, const char *mend);

#endif
