/* See bench.h. */
#define _POSIX_C_SOURCE 199309L
#include "bench.h"

#include <stdlib.h>
#include <time.h>

static double microseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec * 1e-3;
}

/* The time stamp counter, which counts at a rate of its own, whatever the processor's clock does. */
static uint64_t stamp(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t now;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(now));
    return now;
#else
    return 0;
#endif
}

/* Shell's method: few lines, and small beside a library's. */
static void sort(double *values, int count)
{
    for (int gap = count / 2; gap > 0; gap /= 2)
        for (int i = gap; i < count; i++) {
            const double value = values[i];
            int at = i;
            for (; at >= gap && values[at - gap] > value; at -= gap)
                values[at] = values[at - gap];
            values[at] = value;
        }
}

static double at_share(const double *sorted, int count, double share)
{
    return sorted[(int)(share * (double)(count - 1) + 0.5)];
}

int bench_run(const struct model *model, int set, int count, void *arena, struct timing *timing)
{
    double *times = calloc((size_t)count, sizeof *times);
    float *scores = malloc((size_t)model->label_count * sizeof *scores);
    if (times != NULL && scores != NULL) {
        double before = microseconds();
        model_predict(model, set, model->golden_pixels, scores, arena);
        timing->first = microseconds() - before;
        const uint64_t begin = stamp();
        const double start = microseconds();
        for (int i = 0; i < count; i++) {
            before = microseconds();
            model_predict(model, set, model->golden_pixels, scores, arena);
            times[i] = microseconds() - before;
        }
        const double all = microseconds() - start;
        const double rate = all > 0.0 ? (double)(stamp() - begin) / all : 0.0;
        sort(times, count);
        timing->inferences = count;
        timing->least = times[0];
        timing->p50 = at_share(times, count, 0.5);
        timing->p90 = at_share(times, count, 0.9);
        timing->p99 = at_share(times, count, 0.99);
        timing->stamps = timing->p50 * rate;
    }
    const int failed = times == NULL || scores == NULL;
    free(times);
    free(scores);
    return failed ? -1 : 0;
}
