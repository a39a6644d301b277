/* All that a generated layer calls. */
#ifndef KERNELS_H
#define KERNELS_H

#include "convolution_float.h"
#include "convolution_int8.h"
#include "convolution_plain.h"
#include "elementwise.h"
#include "pooling.h"

#endif
