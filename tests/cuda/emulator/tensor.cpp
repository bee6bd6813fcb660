#include "tensor.h"
#include "cuda_on_cpu.h"

// The time of most tests is spent here, on indices that are constants.
#pragma GCC optimize("O3")
#define CHECKED_BY_EYE __attribute__((no_sanitize("undefined")))

namespace emulator {

struct Mma {
    float *d;
    const uint32_t *a, *b;
    Format format;
};

typedef float Eight __attribute__((vector_size(32)));

CHECKED_BY_EYE static inline void widen(float (&two)[2], uint32_t bits, Format format) {
    if (format == Format::bf16) {
        two[0] = __uint_as_float(bits << 16);
        two[1] = __uint_as_float(bits & 0xffff0000u);
    } else {
        two[0] = __half2float(__half_raw{uint16_t(bits)});
        two[1] = __half2float(__half_raw{uint16_t(bits >> 16)});
    }
}

CHECKED_BY_EYE static void multiply(void *const (&offers)[WARP]) {
    float a[16][16];
    union {
        float at[16][8];
        Eight row[16];
    } b, d;
    for (unsigned lane = 0; lane < WARP; lane++) {
        const Mma &mine = *(const Mma *)offers[lane];
        const unsigned g = lane / 4, c = lane % 4 * 2;
        for (unsigned i = 0; i < 4; i++) {
            float two[2];
            widen(two, mine.a[i], mine.format);
            memcpy(&a[g + i % 2 * 8][c + i / 2 * 8], two, sizeof two);
            d.at[g + i / 2 * 8][c + i % 2] = mine.d[i];
        }
        for (unsigned i = 0; i < 2; i++) {
            float two[2];
            widen(two, mine.b[i], mine.format);
            b.at[c + i * 8][g] = two[0], b.at[c + i * 8 + 1][g] = two[1];
        }
    }
    for (unsigned row = 0; row < 16; row++) {
        Eight sum = d.row[row];
        for (unsigned k = 0; k < 16; k += 2) sum += a[row][k] * b.row[k] + a[row][k + 1] * b.row[k + 1];
        d.row[row] = sum;
    }
    for (unsigned lane = 0; lane < WARP; lane++) {
        const Mma &mine = *(const Mma *)offers[lane];
        const unsigned g = lane / 4, c = lane % 4 * 2;
        for (unsigned i = 0; i < 4; i++) mine.d[i] = d.at[g + i / 2 * 8][c + i % 2];
    }
}

void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Format format) {
    Mma mine = {d, a, b, format};
    together(multiply, &mine);
}

}  // namespace emulator
