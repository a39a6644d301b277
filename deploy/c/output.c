/* See output.h. */
#include "output.h"

#include <math.h>
#include <stdio.h>

void output_probabilities(const struct model *model, double *scores)
{
    double most = scores[0], sum = 0.0;
    if (model->probabilities)
        return;
    for (int i = 1; i < model->label_count; i++)
        most = scores[i] > most ? scores[i] : most;
    for (int i = 0; i < model->label_count; i++) {
        scores[i] = exp((scores[i] - most) / model->temperature);
        sum += scores[i];
    }
    for (int i = 0; i < model->label_count; i++)
        scores[i] /= sum;
}

void output_order(const double *probabilities, int count, int *order)
{
    for (int i = 0; i < count; i++) { /* insertion: few labels, and stable */
        int at = i;
        for (; at > 0 && probabilities[order[at - 1]] < probabilities[i]; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
}

void put(FILE *to, const char *text)
{
    fputs(text, to);
}

void put_integer(FILE *to, int64_t value)
{
    char digits[24];
    int at = sizeof digits;
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    digits[--at] = '\0';
    do
        digits[--at] = (char)('0' + rest % 10);
    while ((rest /= 10) > 0);
    if (value < 0)
        digits[--at] = '-';
    put(to, digits + at);
}

void put_decimal(FILE *to, double value, int decimals)
{
    int64_t unit = 1;
    int exponent = 0;
    if (!isfinite(value)) {
        put(to, "null"); /* JSON has no word for it */
        return;
    }
    for (; fabs(value) >= 1e9; exponent++)
        value /= 10.0;
    for (int i = 0; i < decimals; i++)
        unit *= 10;
    const int64_t units = (int64_t)floor(fabs(value) * (double)unit + 0.5);
    if (value < 0.0 && units > 0)
        put(to, "-");
    put_integer(to, units / unit);
    if (decimals > 0)
        put(to, ".");
    for (int64_t place = unit / 10; place > 0; place /= 10)
        putc('0' + (int)(units / place % 10), to);
    if (exponent > 0) {
        put(to, "e");
        put_integer(to, exponent);
    }
}

void put_json(const char *text)
{
    static const char hex[] = "0123456789abcdef";
    putchar('"');
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        if (*c < ' ') {
            put(stdout, "\\u00");
            putchar(hex[*c >> 4]);
            putchar(hex[*c & 15]);
            continue;
        }
        if (*c == '"' || *c == '\\')
            putchar('\\');
        putchar(*c);
    }
    putchar('"');
}

void put_key(const char *name)
{
    if (name[0] != '{')
        put(stdout, ", ");
    else
        putchar(*name++);
    put_json(name);
    put(stdout, ": ");
}

void complain(const char *subject, const char *wrong, const char *mend)
{
    const char *parts[] = {"error: ", subject, ": ", wrong, mend, "\n"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        put(stderr, parts[i]);
}
