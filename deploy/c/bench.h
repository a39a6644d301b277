/* How long an inference takes. */
#ifndef BENCH_H
#define BENCH_H

#include "runner.h"

struct timing {
    int inferences;
    double first, least, p50, p90, p99; /* microseconds; `first` is that of the first inference */
    double stamps; /* ticks of the processor's time stamp counter at p50, 0 where there is none */
};

/* Time `count` inferences one by one. Returns 0, or -1 without memory. */
int bench_run(const struct model *model, int set, int count, void *arena, struct timing *timing);

#endif
