/* Hides instruction sets from a program on Linux, x86-64: LD_PRELOAD=mask_cpuid.so MASK_CPUID=amx
 * or avx2 (all that came after AVX2 and FMA; AMX too).
 *
 * The kernel lets CPUID fault (arch_prctl ARCH_SET_CPUID); the handler executes it on the program's
 * behalf and clears bits of its answer. Where the processor cannot do that, the program ends with
 * code 77 before it starts.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

/* Leaf 7. AMX is all in EDX: BF16, TILE, INT8. */
static const unsigned amx = BIT(22) | BIT(24) | BIT(25);
/* AVX-512: F, DQ, IFMA, PF, ER, CD, BW, VL; VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ; 4VNNIW, 4FMAPS,
 * VP2INTERSECT, FP16. */
static const unsigned avx512_b = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28)
                                 | BIT(30) | BIT(31);
static const unsigned avx512_c = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const unsigned avx512_d = BIT(2) | BIT(3) | BIT(8) | BIT(23);
/* Leaf 7, 1. EAX: AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA; EDX: AVX-VNNI-INT8, AVX-NE-CONVERT,
 * AMX-COMPLEX, AVX-VNNI-INT16, AVX10. */
static const unsigned later_a = BIT(4) | BIT(5) | BIT(21) | BIT(23);
static const unsigned later_d = BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19);

static int only_avx2;

static long let_cpuid(long allowed)
{
    return syscall(SYS_arch_prctl, ARCH_SET_CPUID, allowed);
}

static void answer(greg_t *registers)
{
    unsigned leaf = (unsigned)registers[REG_RAX], subleaf = (unsigned)registers[REG_RCX];
    unsigned a = leaf, b, c = subleaf, d;
    let_cpuid(1);
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    let_cpuid(0);
    if (leaf == 7 && subleaf == 0) {
        d &= ~amx;
        if (only_avx2) {
            b &= ~avx512_b;
            c &= ~avx512_c;
            d &= ~avx512_d;
        }
    }
    if (leaf == 7 && subleaf == 1 && only_avx2) {
        a &= ~later_a;
        d &= ~later_d;
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2; /* past CPUID */
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *at = (const unsigned char *)registers[REG_RIP];
    /* A fault of CPUID has no address; one of the program's own is let through. */
    if (info->si_code == SI_KERNEL && at[0] == 0x0f && at[1] == 0xa2) {
        answer(registers);
        return;
    }
    signal(number, SIG_DFL);
}

__attribute__((constructor)) static void hide(void)
{
    const char *what = getenv("MASK_CPUID");
    if (what == NULL)
        return;
    only_avx2 = strcmp(what, "avx2") == 0;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    if (sigaction(SIGSEGV, &action, NULL) != 0 || let_cpuid(0) != 0)
        _exit(77);
}
