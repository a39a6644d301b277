/* The last line of a file that includes vector.h. */
#if defined(VECTOR_DOTPROD) && defined(__clang__)
#pragma clang attribute pop
#endif
