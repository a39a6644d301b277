/* Files to labels, by the model beside it. */
#ifndef CLASSIFY_H
#define CLASSIFY_H

#include "options.h"

/* Answer for every file that the options name, with their instruction set's number. `arena` is the
 * model's scratch memory. Returns the exit code; what is wrong with a file has been said. */
int classify(const struct options *options, int set, void *arena);

#endif
