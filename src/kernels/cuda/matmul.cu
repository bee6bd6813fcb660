// matmul: out[t,o] = bias[o] + Σ_i w[o,i]·x[t,i], w: [O,I] bf16, x: [T,I] f32, for at most 8 rows
// of x, and what prepares more rows for a library's product.
//
// A block computes ROWS rows of w against all rows of x; its threads share the columns, 8 at a
// time: the 16 bytes one load brings. Of an O of 5120 that makes 1280 blocks, all resident on 132
// SMs, with 10 blocks · 128 threads · ROWS · 16 B = 80 KB asked for at once per SM; 4.3 TB/s at a
// latency of 0.7 µs need 23 KB. A block uses x once per thread, so it reads it where it lies,
// through the first cache, which the weights pass by.
//
// Sums are f32 and in one order for every number of tokens and every position among them: a row of
// the result depends on its row of x alone, bit for bit.
#include "matmul.cuh"

namespace {

constexpr int CHUNK = 8;

// Columns [0, left) of 8 that begin at `w`; the others are 0. WIDE: all 8 exist and are aligned.
template <bool WIDE>
__device__ void load_weights(uint32_t (&words)[4], const uint16_t *w, int left) {
    if constexpr (WIDE) {
        const uint4 q = load_once(reinterpret_cast<const uint4 *>(w));
        words[0] = q.x, words[1] = q.y, words[2] = q.z, words[3] = q.w;
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t low = 2 * i < left ? w[2 * i] : 0;
            const uint32_t high = 2 * i + 1 < left ? w[2 * i + 1] : 0;
            words[i] = high << 16 | low;
        }
    }
}

// The same of x.
template <bool WIDE> __device__ void load_x(float (&v)[CHUNK], const float *x, int left) {
    if constexpr (WIDE) {
        const float4 a = __ldg(reinterpret_cast<const float4 *>(x));
        const float4 b = __ldg(reinterpret_cast<const float4 *>(x) + 1);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else {
#pragma unroll
        for (int i = 0; i < CHUNK; i++) v[i] = i < left ? x[i] : 0.0f;
    }
}

// This thread's part of ROWS · TOKENS sums, [row][token]. Rows and tokens that do not exist repeat
// the last one.
template <int TOKENS, bool WIDE>
__device__ void accumulate(float (&sum)[ROWS * TOKENS], const uint16_t *weight, const float *x,
                           int first_row, int tokens, int rows, int cols) {
    weight += size_t(first_row) * cols;
    const int last_row = rows - 1 - first_row, last_token = tokens - 1;
#pragma unroll 1
    for (int c = threadIdx.x * CHUNK; c < cols; c += COLUMN_THREADS * CHUNK) {
        uint32_t words[ROWS][4];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            load_weights<WIDE>(words[r], weight + (min(r, last_row) * cols + c), cols - c);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float v[CHUNK];
            load_x<WIDE>(v, x + (min(t, last_token) * cols + c), cols - c);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float &s = sum[r * TOKENS + t];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float2 w = bf16x2_to_f32(words[r][i]);
                    s = fmaf(w.x, v[2 * i], s);
                    s = fmaf(w.y, v[2 * i + 1], s);
                }
            }
        }
    }
}

template <int TOKENS>
__device__ void matmul(float (&partial)[WARPS][ROWS * TOKENS], const Matrices &matrices,
                       const float *x, int tokens, int cols) {
    int first_row;
    const Matrix &matrix = matrix_of_block(matrices, first_row);
    const uint16_t *weight = static_cast<const uint16_t *>(matrix.weight);
    float sum[ROWS * TOKENS] = {};
    const bool wide = cols % CHUNK == 0 && aligned16(weight) && aligned16(x);
    if (wide)
        accumulate<TOKENS, true>(sum, weight, x, first_row, tokens, matrix.rows, cols);
    else
        accumulate<TOKENS, false>(sum, weight, x, first_row, tokens, matrix.rows, cols);
    write_sums<TOKENS>(partial, sum, matrix, first_row, tokens);
}

}  // namespace

// One kernel per number of tokens, of which fewer may be there. Grid: the blocks of all matrices.
#define MATMUL(TOKENS)                                                                             \
    extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)                                   \
        matmul_##TOKENS(Matrices matrices, const float *__restrict__ x, int tokens, int cols) {    \
        __shared__ float partial[WARPS][ROWS * TOKENS];                                            \
        matmul<TOKENS>(partial, matrices, x, tokens, cols);                                        \
    }

MATMUL(1)
MATMUL(2)
MATMUL(4)
MATMUL(8)

// x in two parts that tensor cores take: hi = bf16(x), lo = bf16(x − hi). |x − hi − lo| <=
// 2^-17·|x|.
extern "C" __global__ void matmul_split(uint16_t *__restrict__ hi, uint16_t *__restrict__ lo,
                                        const float *__restrict__ x, uint64_t n) {
    for (uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; i < n;
         i += uint64_t(gridDim.x) * blockDim.x) {
        const Bf16Parts parts = split_bf16(x[i]);
        hi[i] = parts.hi;
        lo[i] = parts.lo;
    }
}

// out[t,:] = bias, to which the product is added.
extern "C" __global__ void matmul_bias(float *__restrict__ out, const float *__restrict__ bias,
                                       int rows, uint64_t n) {
    for (uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; i < n;
         i += uint64_t(gridDim.x) * blockDim.x)
        out[i] = bias[i % rows];
}
