// What the products with few rows of x share, whatever the weights' form: a block computes ROWS
// rows of the weight against all rows of x, and its threads share the columns.
#pragma once
#include "products.cuh"

constexpr int COLUMN_THREADS = 128;

namespace {

constexpr int WARPS = COLUMN_THREADS / 32;
constexpr int ROWS = 4;

// out = bias + the sums of all threads, each of which brings its part of ROWS · TOKENS,
// [row][token]. They are added in one order, whatever TOKENS.
template <int TOKENS>
__device__ void write_sums(float (&partial)[WARPS][ROWS * TOKENS], float (&sum)[ROWS * TOKENS],
                           float *out, const float *bias, int tokens, int rows) {
    constexpr int SUMS = ROWS * TOKENS;
    const int lane = threadIdx.x % 32;
    const float total = warp_sums(sum);
    if (lane % (32 / SUMS) == 0) partial[threadIdx.x / 32][lane / (32 / SUMS)] = total;
    __syncthreads();
    const int row = blockIdx.x * ROWS + int(threadIdx.x) / TOKENS, token = threadIdx.x % TOKENS;
    if (threadIdx.x < SUMS && row < rows && token < tokens) {
        float y = bias ? bias[row] : 0.0f;
        for (int warp = 0; warp < WARPS; warp++) y += partial[warp][threadIdx.x];
        out[size_t(token) * rows + row] = y;
    }
}

}  // namespace
