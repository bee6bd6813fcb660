// matmul with weights in bf16, see matmul.cuh; what prepares and ends products of many rows.
#include "matmul_many.cuh"

// Up to 8 rows of x. Block: a warp for each slice, 4 to MOST_WARPS; grid: tiles of FEW_ROWS rows.
#define FEW(PARTS)                                                                                 \
    extern "C" __global__ void __launch_bounds__(32 * MOST_WARPS)                                  \
        matmul_few_##PARTS(Matrices matrices, const float *__restrict__ x, int tokens, int cols) { \
        __shared__ float partial[MOST_WARPS][FEW_ROWS * 8];                                        \
        few<Bf16Form, PARTS>(partial, matrices, x, tokens, cols);                                  \
    }

FEW(1)
FEW(2)

// More. One kernel per tile of tokens; `parts` as matmul_split leaves them.
#define MANY(TOKENS, PARTS)                                                                        \
    extern "C" __global__ void __launch_bounds__(MANY_THREADS)                                  \
        matmul_many_##TOKENS##_##PARTS(Matrices matrices, float *__restrict__ sums,                \
                                       const uint16_t *__restrict__ parts, int tokens, int cols,   \
                                       int share, uint64_t outputs) {                              \
        many<Bf16Form, PARTS, TOKENS>(matrices, sums, parts, tokens, cols, share, outputs);        \
    }

MANY(16, 1)
MANY(16, 2)
MANY(32, 1)
MANY(32, 2)
MANY(64, 1)
MANY(64, 2)

// parts[p]: the p-th bf16 part of x [rows, cols], hi and then, if `count` is 2, lo; rows are padded with
// zeros to whole blocks of 32 columns. A thread per column of these.
extern "C" __global__ void matmul_split(uint16_t *__restrict__ parts, const float *__restrict__ x,
                                        int cols, int count, uint64_t n) {
    const int padded = (cols + 31) / 32 * 32;
    for (uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; i < n;
         i += uint64_t(gridDim.x) * blockDim.x) {
        const uint64_t row = i / padded;
        const int column = int(i - row * padded);
        const Bf16Parts of = split_bf16(column < cols ? x[row * cols + column] : 0.0f);
        parts[i] = of.hi;
        if (count > 1) parts[n + i] = of.lo;
    }
}

// The outputs of all matrices from the sums of their slices, in order, and the bias.
extern "C" __global__ void matmul_add(Matrices matrices, const float *__restrict__ sums, int slices,
                                      int tokens, uint64_t n) {
    float *out = matrices.of[0].out;
    for (uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; i < n;
         i += uint64_t(gridDim.x) * blockDim.x) {
        float y = 0.0f;
        for (int slice = 0; slice < slices; slice++) y += sums[slice * n + i];
        uint64_t at = i;
        Matrix m = matrices.of[0];
#pragma unroll
        for (int k = 1; k < 3; k++) {
            const uint64_t before = uint64_t(m.rows) * tokens;
            if (at < before) break;
            at -= before;
            m = matrices.of[k];
        }
        out[i] = y + (m.bias ? m.bias[at % m.rows] : 0.0f);
    }
}

// out[t,:] = bias, to which a library's product is added.
extern "C" __global__ void matmul_bias(float *__restrict__ out, const float *__restrict__ bias,
                                       int rows, uint64_t n) {
    for (uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; i < n;
         i += uint64_t(gridDim.x) * blockDim.x)
        out[i] = bias[i % rows];
}
