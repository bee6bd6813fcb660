// matmul: out[t,o] = Σ_i w[o,i]·x[t,i] + bias[o], w: [O,I] bf16 or 8 bits, x: [T,I] f32, on tensor
// cores: weights are the 16-row operand of mma, rows of x its eight columns, in one or two bf16
// parts.
//
// The order of additions, the same in every kernel and for every number of rows of x:
//
//  - The columns are cut into slices, as many and as wide as the matrix's shape alone says.
//  - Within a slice they are taken 32 at a time, in order. Lane q of four has features 8q .. 8q + 8
//    of them, which are two products of 16: first those of its words 0 and 1, then of 2 and 3. Each
//    is multiplied with hi, then with lo.
//  - bf16: all of that goes into one accumulator. 8 bits: into one for each 32, a block, whose sum
//    is multiplied by the block's scale and added by one FMA: every weight is exact.
//  - Slices are added to 0 in order, then the bias.
//
// Of an mma an element depends on its row, its column and the accumulator. So a row of the result
// depends on its row of x alone, bit for bit.
#pragma once
#include "products.cuh"

// A matrix [rows, cols] and where its product [T, rows] goes.
struct Matrix {
    float *out;
    const void *weight;      // bf16, or i8
    const uint16_t *scales;  // of i8
    const float *bias;       // or null
    float *sums;             // [splits, T, rows], where there is more than one
    int rows, blocks;        // of threads
    int slice;               // columns of a slice, a multiple of 64
    int splits;              // the slices, where each has a block of its own, or 1
};

// Matrices that are multiplied with the same x, in one launch: some of a layer are so small that
// the launch would take longer than the product. Those that are not there have no blocks.
struct Matrices {
    Matrix of[3];
};

constexpr int BLOCK = 32;     // columns that are multiplied at a time
constexpr int ROWS = 16;      // of a matrix
constexpr int TOKENS = 8;     // rows of x
constexpr int MOST_SLICES = 16;

namespace {

// The matrix of this block of threads, and the block's place among the matrix's.
__device__ __forceinline__ const Matrix &matrix_of_block(const Matrices &matrices, int &block) {
    int i = 0;
    while (block >= matrices.of[i].blocks) block -= matrices.of[i++].blocks;
    return matrices.of[i];
}

__device__ __forceinline__ uint32_t word(const uint4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Eight bf16, of which `left` are there; the others are 0.
__device__ __forceinline__ uint4 gather8(const uint16_t *w, int left) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t low = 2 * i < left ? w[2 * i] : 0;
        const uint32_t high = 2 * i + 1 < left ? w[2 * i + 1] : 0;
        words[i] = high << 16 | low;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// Both halves of a word of two bf16, added to another two. Exact where the sums are bf16.
__device__ __forceinline__ uint32_t add_bf16x2(uint32_t a, uint32_t b) {
#if defined(__CUDACC__)
    uint32_t out;
    // A fused multiply-add with 1, since capability 8.0 has no addition.
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(0x3f803f80u), "r"(b));
    return out;
#else
    const float2 v = bf16x2_to_f32(a), w = bf16x2_to_f32(b);
    return f32_to_bf16x2(v.x + w.x, v.y + w.y);
#endif
}

// What the two forms of a weight are to the kernels:
//
//     Value           how one weight is stored
//     SCALED          whether blocks have a scale
//     Eight           eight weights of a row, as they lie there
//     words(eight)    the same in bf16
struct Bf16 {
    using Value = uint16_t;
    using Eight = uint4;
    static constexpr bool SCALED = false;

    static __device__ __forceinline__ uint4 words(uint4 eight) { return eight; }
};

struct Q8 {
    using Value = uint8_t;
    using Eight = uint2;
    static constexpr bool SCALED = true;

    static __device__ __forceinline__ uint32_t pair(uint32_t bytes, uint32_t which) {
        // The 7 lower bits of a byte in a bf16 of exponent 7 are 128 + those; 128 is too much, 256
        // where the sign bit is set.
        const uint32_t both = __byte_perm(bytes, 0, which);
        return add_bf16x2((both & 0x007f007fu) | 0x43004300u, (both & 0x00800080u) | 0xc300c300u);
    }
    static __device__ __forceinline__ uint4 words(uint2 eight) {
        return make_uint4(pair(eight.x, 0x4140), pair(eight.x, 0x4342), pair(eight.y, 0x4140),
                          pair(eight.y, 0x4342));
    }
};

// sum[m] += 32 columns of 16 rows times those of eight rows of x, M times. A lane has its eight
// features of rows lane / 4 and lane / 4 + 8 in `a`, of row lane / 4 of the m-th x in x[m]; `low`
// and `high` are the scales of the two rows.
template <class Format, int PARTS, int M>
__device__ __forceinline__ void add_block(float (*sum)[4], const uint4 (&a)[2],
                                          const uint4 (&x)[M][PARTS], float low, float high) {
    float block[M][4] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t rows[4] = {word(a[0], 2 * half), word(a[1], 2 * half),
                                  word(a[0], 2 * half + 1), word(a[1], 2 * half + 1)};
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
#pragma unroll
            for (int m = 0; m < M; m++)
                mma_bf16(Format::SCALED ? block[m] : sum[m], rows,
                         {word(x[m][part], 2 * half), word(x[m][part], 2 * half + 1)});
        }
    }
    if constexpr (Format::SCALED) {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                sum[m][i] = fmaf(block[m][i], i < 2 ? low : high, sum[m][i]);
        }
    }
}

}  // namespace
