/* What AVX2 and AVX-512 share. See vector.h. */
#ifndef VECTOR_SSE_H
#define VECTOR_SSE_H

/* rows[c][x], c below 8, x below 16, as 8 bytes for each x. */
INLINE void bytes_transpose(const unsigned char rows[8][16], uint64_t columns[16])
{
    __m128i r[8], s[8];
    UNROLL for (int i = 0; i < 8; i++)
        r[i] = _mm_loadu_si128((const __m128i *)(const void *)rows[i]);
    UNROLL for (int i = 0; i < 4; i++) {
        s[2 * i] = _mm_unpacklo_epi8(r[2 * i], r[2 * i + 1]);
        s[2 * i + 1] = _mm_unpackhi_epi8(r[2 * i], r[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 2; i++) { /* low and high halves of x */
        __m128i a = _mm_unpacklo_epi16(s[i], s[2 + i]), b = _mm_unpackhi_epi16(s[i], s[2 + i]);
        __m128i c = _mm_unpacklo_epi16(s[4 + i], s[6 + i]), d = _mm_unpackhi_epi16(s[4 + i], s[6 + i]);
        _mm_storeu_si128((__m128i *)(void *)(columns + 8 * i), _mm_unpacklo_epi32(a, c));
        _mm_storeu_si128((__m128i *)(void *)(columns + 8 * i + 2), _mm_unpackhi_epi32(a, c));
        _mm_storeu_si128((__m128i *)(void *)(columns + 8 * i + 4), _mm_unpacklo_epi32(b, d));
        _mm_storeu_si128((__m128i *)(void *)(columns + 8 * i + 6), _mm_unpackhi_epi32(b, d));
    }
}

#endif
