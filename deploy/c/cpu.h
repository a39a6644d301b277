/* What this processor has; asked while it runs, so that one executable serves a whole family. */
#ifndef CPU_H
#define CPU_H

int cpu_always(void);  /* the instruction set that every processor of the family has */
int cpu_avx2(void);    /* AVX2 and FMA */
int cpu_avx512(void);  /* AVX-512 F, BW, DQ, VL and VNNI */
int cpu_dotprod(void); /* SDOT of Armv8.2, as in a Raspberry Pi 5 */

#endif
