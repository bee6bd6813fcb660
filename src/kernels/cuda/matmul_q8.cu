// matmul with weights in 8 bits, see matmul.cuh: quants [O,I] i8 and scales [O,I/32] bf16; I is a multiple
// of 32, quants and x are aligned. Every weight is exact: a quant is a bf16, and the sum of a block is
// multiplied by its scale.
#include "matmul_many.cuh"

// Up to 8 rows of x. Block: a warp for each slice, 4 to MOST_WARPS; grid: tiles of FEW_ROWS rows.
#define FEW(PARTS)                                                                                 \
    extern "C" __global__ void __launch_bounds__(32 * MOST_WARPS)                                  \
        matmul_q8_few_##PARTS(Matrices matrices, const float *__restrict__ x, int tokens,          \
                              int cols) {                                                          \
        __shared__ float partial[MOST_WARPS][FEW_ROWS * 8];                                        \
        few<Q8Form, PARTS>(partial, matrices, x, tokens, cols);                                    \
    }

FEW(1)
FEW(2)

// Any number more. One kernel per tile of tokens.
#define MANY(TOKENS, PARTS)                                                                        \
    extern "C" __global__ void __launch_bounds__(MANY_THREADS)                                  \
        matmul_q8_many_##TOKENS##_##PARTS(Matrices matrices, float *__restrict__ sums,             \
                                          const uint16_t *__restrict__ parts, int tokens,          \
                                          int cols, int share, uint64_t outputs) {                 \
        many<Q8Form, PARTS, TOKENS>(matrices, sums, parts, tokens, cols, share, outputs);          \
    }

MANY(16, 1)
MANY(16, 2)
MANY(32, 1)
MANY(32, 2)
MANY(64, 1)
MANY(64, 2)
