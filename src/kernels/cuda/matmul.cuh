// What the products with few rows of x share, whatever the weights' form: a block computes ROWS
// rows of the weight against all rows of x, and its threads share the columns.
#pragma once
#include "products.cuh"

constexpr int COLUMN_THREADS = 128;

// A matrix [rows, cols] and where its product [T, rows] goes. `blocks` is rows / ROWS, rounded up.
struct Matrix {
    float *out;
    const void *weight;      // bf16, or i8
    const uint16_t *scales;  // of i8
    const float *bias;       // or null
    int rows, blocks;
};

// Matrices that are multiplied with the same x, in one launch: some of a layer are so small that the
// launch would take longer than the product. Those that are not there have no blocks.
struct Matrices {
    Matrix of[3];
};

namespace {

constexpr int WARPS = COLUMN_THREADS / 32;
constexpr int ROWS = 4;

// out = bias + the sums of all threads, each of which brings its part of ROWS · TOKENS,
// [row][token]. They are added in one order, whatever TOKENS.
template <int TOKENS>
__device__ void write_sums(float (&partial)[WARPS][ROWS * TOKENS], float (&sum)[ROWS * TOKENS],
                           const Matrix &matrix, int first_row, int tokens) {
    constexpr int SUMS = ROWS * TOKENS;
    const int lane = threadIdx.x % 32;
    const float total = warp_sums(sum);
    if (lane % (32 / SUMS) == 0) partial[threadIdx.x / 32][lane / (32 / SUMS)] = total;
    __syncthreads();
    const int row = first_row + int(threadIdx.x) / TOKENS, token = threadIdx.x % TOKENS;
    if (threadIdx.x < SUMS && row < matrix.rows && token < tokens) {
        float y = matrix.bias ? matrix.bias[row] : 0.0f;
        for (int warp = 0; warp < WARPS; warp++) y += partial[warp][threadIdx.x];
        matrix.out[size_t(token) * matrix.rows + row] = y;
    }
}

// The matrix of this block, and the first of its rows.
__device__ __forceinline__ const Matrix &matrix_of_block(const Matrices &matrices, int &first_row) {
    int block = blockIdx.x, i = 0;
    while (block >= matrices.of[i].blocks) block -= matrices.of[i++].blocks;
    first_row = block * ROWS;
    return matrices.of[i];
}

}  // namespace
