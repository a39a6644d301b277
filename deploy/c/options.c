/* See options.h. */
#include "options.h"

#include "output.h"

#include <string.h>

void options_help(void)
{
    puts("usage: classify [OPTIONS] FILE...\n"
         "\n"
         "Classify pictures: PGM, PPM, IDX files (one line for each image), - for stdin.\n"
         "\n"
         "  --top N      labels to show for a picture (default 3)\n"
         "  --raw        files hold bare pixels, C x H x W, one image after the other\n"
         "  --json       print one JSON document\n"
         "  --set NAME   use this instruction set (default: the best; see --version)\n"
         "  --selftest   repeat the golden values of every layer\n"
         "  --bench      measure the time of an inference; --count N of them (default 1000)\n"
         "  --version    the model, and the instruction sets that work here\n"
         "  -h, --help   this text\n"
         "  --           what follows is files, also one whose name begins with -\n"
         "\n"
         "Exit codes: 0 fine, 1 selftest failed, 2 usage, 3 bad input, 4 something is missing.");
}

static int usage(const char *what, const char *subject, const char *mend)
{
    const char *parts[] = {"error: ", what, subject[0] ? " " : "", subject, "; ", mend, "\n"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        put(stderr, parts[i]);
    return EXIT_USAGE;
}

/* A whole number above 0 and of nine digits at most, or 0. */
static int number_of(const char *text)
{
    int value = 0;
    for (; *text >= '0' && *text <= '9' && value < 100000000; text++)
        value = value * 10 + (*text - '0');
    return *text == '\0' ? value : 0;
}

/* The option at `*at` takes a value: the next argument. */
static const char *value_of(int count, char **arguments, int *at)
{
    return *at + 1 < count ? arguments[++*at] : "";
}

static int parse_one(int count, char **arguments, int *at, struct options *options)
{
    const char *name = arguments[*at];
    static const struct {
        const char *name;
        enum task task;
    } tasks[] = {{"--selftest", TASK_SELFTEST}, {"--bench", TASK_BENCH}, {"--version", TASK_VERSION},
                 {"--help", TASK_HELP},         {"-h", TASK_HELP}};
    for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++)
        if (strcmp(name, tasks[i].name) == 0) {
            if (options->task != TASK_CLASSIFY && options->task != tasks[i].task)
                return usage("only one of --selftest, --bench and --version", "", "leave the others out");
            options->task = tasks[i].task;
            return 0;
        }
    if (strcmp(name, "--json") == 0) {
        options->json = 1;
    } else if (strcmp(name, "--raw") == 0) {
        options->raw = 1;
    } else if (strcmp(name, "--set") == 0) {
        options->set = value_of(count, arguments, at);
    } else if (strcmp(name, "--top") == 0) {
        if ((options->top = number_of(value_of(count, arguments, at))) == 0)
            return usage("--top needs a whole number above 0", "", "give it, as in --top 3");
    } else if (strcmp(name, "--count") == 0) {
        if ((options->count = number_of(value_of(count, arguments, at))) == 0)
            return usage("--count needs a whole number above 0", "", "give it, as in --count 1000");
    } else {
        return usage("unknown option", name, "see classify --help; a file of that name follows --");
    }
    return 0;
}

int options_parse(int count, char **arguments, struct options *options)
{
    int files = 0, standard = 0, plain = 0;
    *options = (struct options){TASK_CLASSIFY, 0, 0, 3, 1000, NULL, arguments + 1, 0};
    for (int i = 1; i < count; i++) {
        char *argument = arguments[i];
        if (!plain && strcmp(argument, "--") == 0) {
            plain = 1;
        } else if (!plain && argument[0] == '-' && argument[1] != '\0') {
            int failed = parse_one(count, arguments, &i, options);
            if (failed)
                return failed;
        } else {
            standard += strcmp(argument, "-") == 0;
            arguments[1 + files++] = argument;
        }
    }
    options->file_count = files;
    if (standard > 1)
        return usage("stdin can be read once", "", "give '-' once");
    if (options->task == TASK_CLASSIFY && files == 0)
        return usage("no file to classify", "", "give pictures, or see classify --help");
    if (options->task != TASK_CLASSIFY && options->task != TASK_HELP && files > 0)
        return usage("files are given, too", "", "leave them out, or the option that is not about them");
    return 0;
}
