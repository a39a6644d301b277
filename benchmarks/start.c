/* How long a program takes from its start to its first answer, and the memory that it needs at most:
 *
 *     start N PROGRAM ARGUMENTS...
 *
 * prints the nanoseconds from before the start to the first byte on its stdout, N times, in one
 * line; then the peak of resident memory in KiB of one more run, read as it ends (what wait4 tells
 * would include this program's own), or -1 where tracing is not allowed.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (long long)time.tv_sec * 1000000000 + time.tv_nsec;
}

static pid_t started(char **command, int output, int traced)
{
    pid_t child = vfork();
    if (child == 0) {
        if (traced && ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
            _exit(126);
        dup2(output, STDOUT_FILENO);
        execv(command[0], command);
        _exit(127);
    }
    return child;
}

static long long first_answer(char **command)
{
    int ends[2], status;
    char byte, rest[4096];
    if (pipe(ends) != 0)
        exit(1);
    long long start = now();
    pid_t child = started(command, ends[1], 0);
    close(ends[1]);
    int answered = read(ends[0], &byte, 1) == 1;
    long long taken = now() - start;
    while (read(ends[0], rest, sizeof rest) > 0)
        continue;
    close(ends[0]);
    if (waitpid(child, &status, 0) != child || !answered || status != 0) {
        fprintf(stderr, "start: %s failed\n", command[0]);
        exit(1);
    }
    return taken;
}

static long peak_of(pid_t process)
{
    char path[64], line[256];
    long peak = -1;
    snprintf(path, sizeof path, "/proc/%ld/status", (long)process);
    FILE *file = fopen(path, "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "VmHWM: %ld", &peak) == 1)
            break;
    if (file != NULL)
        fclose(file);
    return peak;
}

static long peak(char **command)
{
    int ends[2], status;
    long found = -1;
    if (pipe(ends) != 0) /* never read: what is said fits into it */
        exit(1);
    pid_t child = started(command, ends[1], 1);
    while (waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
        int stop = WSTOPSIG(status);
        if (stop == SIGTRAP && status >> 16 == PTRACE_EVENT_EXIT)
            found = peak_of(child);
        else if (stop == SIGTRAP)
            ptrace(PTRACE_SETOPTIONS, child, NULL, (void *)(long)PTRACE_O_TRACEEXIT);
        ptrace(PTRACE_CONT, child, NULL, (void *)(long)(stop == SIGTRAP ? 0 : stop));
    }
    return found;
}

int main(int count, char **arguments)
{
    if (count < 3)
        return 2;
    for (long i = strtol(arguments[1], NULL, 10); i > 0; i--)
        printf("%lld ", first_answer(arguments + 2));
    printf("\n%ld\n", peak(arguments + 2));
    return 0;
}
