/* The command line of classify. */
#ifndef OPTIONS_H
#define OPTIONS_H

enum { EXIT_WRONG = 1, EXIT_USAGE = 2, EXIT_BAD_INPUT = 3, EXIT_MISSING = 4 };
enum task { TASK_CLASSIFY, TASK_SELFTEST, TASK_BENCH, TASK_VERSION, TASK_HELP };

struct options {
    enum task task;
    int json, raw, top, count;
    const char *set;    /* of instructions; NULL: the best */
    char *const *files; /* those that are left of the arguments */
    int file_count;
};

/* Returns 0, or EXIT_USAGE after having said why. */
int options_parse(int count, char **arguments, struct options *options);

void options_help(void);

#endif
