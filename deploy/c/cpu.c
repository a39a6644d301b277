/* See cpu.h. */
#include "cpu.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#define HWCAP_DOT_PRODUCT (1ul << 20) /* HWCAP_ASIMDDP of Linux's asm/hwcap.h */
#endif

int cpu_always(void)
{
    return 1;
}

#if defined(__x86_64__)
int cpu_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

int cpu_avx512(void)
{
    return cpu_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

#if defined(__aarch64__)
int cpu_dotprod(void)
{
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_DOT_PRODUCT) != 0;
#else
    return 0;
#endif
}
#endif
