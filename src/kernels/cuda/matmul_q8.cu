// matmul with a weight in 8 bits: out[t,o] = bias[o] + Σ_i quant[o,i]·scale[o,i/32]·x[t,i], quants:
// [O,I] i8, scales: [O,I/32] bf16, x: [T,I] f32; I is a multiple of 32, quants and x are aligned.
//
// Up to 8 rows of x: as in matmul.cu, but the 16 bytes of a load are 16 columns, half a block. Of
// an O of 4096 that makes 1024 blocks, which ask for 8 KB each before they wait: 62 KB per SM of
// 132, where 4.3 TB/s at a latency of 0.7 µs need 23 KB. A weight becomes f32 without a conversion,
// which devices do at a fraction of their rate: its byte, permuted into a number of exponent 15, is
// 2^15 + 128 + quant, and one FMA takes the constant away and applies the scale, exactly. Of an
// inner loop for sm_90a that is 4.3 instructions per weight with one row of x and 12 with eight,
// loads and addresses included; 7 can be issued while a weight arrives, so eight rows are bound by
// arithmetic.
//
// The sums of up to 8 rows have one order for every number of tokens and every position among them:
// a row of the result depends on its row of x alone, bit for bit.
#include "matmul.cuh"
#include "tile.cuh"

namespace {

constexpr int HALF = 16;

// 2^15 + 128, a zero quant in the form that `offset_quant` gives.
constexpr float OFFSET = 32896.0f;

// OFFSET + the quant in byte i of a word whose sign bits are flipped.
__device__ __forceinline__ float offset_quant(uint32_t flipped, int i) {
    return __uint_as_float(__byte_perm(flipped, 0x47000000u, 0x7404 + (i << 4)));
}

// This thread's part of ROWS · TOKENS sums, [row][token]. Rows and tokens that do not exist repeat
// the last one.
template <int TOKENS>
__device__ void accumulate(float (&sum)[ROWS * TOKENS], const Matrix &matrix, const float *x,
                           int first_row, int tokens, int cols) {
    const int blocks = cols / 32;
    const uint8_t *quants = static_cast<const uint8_t *>(matrix.weight) + size_t(first_row) * cols;
    const uint16_t *scales = matrix.scales + size_t(first_row) * blocks;
    const int last_row = matrix.rows - 1 - first_row, last_token = tokens - 1;
#pragma unroll 1
    for (int c = threadIdx.x * HALF; c < cols; c += COLUMN_THREADS * HALF) {
        uint32_t words[ROWS][4];
        float scale[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int row = min(r, last_row);
            const uint4 q = load_once(reinterpret_cast<const uint4 *>(quants + (row * cols + c)));
            words[r][0] = q.x, words[r][1] = q.y, words[r][2] = q.z, words[r][3] = q.w;
            scale[r] = bf16_to_f32(__ldg(scales + (row * blocks + c / 32)));
        }
#pragma unroll
        for (int word = 0; word < 4; word++) {
            float w[ROWS][4];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                // Two's complement to 0 .. 255 in the order of the values.
                const uint32_t flipped = words[r][word] ^ 0x80808080u;
#pragma unroll
                for (int i = 0; i < 4; i++)
                    w[r][i] = fmaf(offset_quant(flipped, i), scale[r], -OFFSET * scale[r]);
            }
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                const float *at = x + (min(t, last_token) * cols + c + 4 * word);
                const float4 v = __ldg(reinterpret_cast<const float4 *>(at));
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    float &s = sum[r * TOKENS + t];
                    s = fmaf(w[r][0], v.x, s), s = fmaf(w[r][1], v.y, s);
                    s = fmaf(w[r][2], v.z, s), s = fmaf(w[r][3], v.w, s);
                }
            }
        }
    }
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

// How tile.cuh reads these weights. One block at a time: two would not fit into 48 KB twice.
struct Q8 {
    using Scale = uint16_t;
    static constexpr int STEP = 1, PIECES = 2;

    static __device__ __forceinline__ void decode(uint32_t (&w)[4], const uint4 (&block)[PIECES],
                                                  int quarter) {
        const uint2 eight = reinterpret_cast<const uint2 *>(block)[quarter];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            // Features i and i + 4 in the low bytes of the halves. Their 7 lower bits in a bf16 of
            // exponent 7 are 128 + those; 128 is too much, 256 where the sign bit is set.
            const uint32_t pair = __byte_perm(eight.x, eight.y, 0x4400 + 0x1111 * i);
            w[i] = add_bf16x2((pair & 0x007f007fu) | 0x43004300u,
                              (pair & 0x00800080u) | 0xc300c300u);
        }
    }
    static __device__ __forceinline__ float scale(Scale bits) { return bf16_to_f32(bits); }
};

}  // namespace

// One kernel per number of tokens, of which fewer may be there. Grid: the blocks of all matrices.
#define MATMUL_Q8(TOKENS)                                                                          \
    extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)                                   \
        matmul_q8_##TOKENS(Matrices matrices, const float *__restrict__ x, int tokens, int cols) { \
        __shared__ float partial[WARPS][ROWS * TOKENS];                                            \
        int first_row;                                                                             \
        const Matrix &matrix = matrix_of_block(matrices, first_row);                               \
        float sum[ROWS * TOKENS] = {};                                                             \
        accumulate<TOKENS>(sum, matrix, x, first_row, tokens, cols);                               \
        write_sums<TOKENS>(partial, sum, matrix, first_row, tokens);                               \
    }

MATMUL_Q8(1)
MATMUL_Q8(2)
MATMUL_Q8(4)
MATMUL_Q8(8)

// Any number of rows of x, in parts as tile_split leaves them: see tile.cuh. Grid: rows / TILE_COLUMNS and tokens
// / TILE_ROWS rounded up, splits: the z-th multiplies `share` blocks of every row, from z·share on,
// and writes the z-th [T,O] of `out`. The first of them adds the bias.
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    matmul_q8_tile(float *__restrict__ out, const uint8_t *__restrict__ quants,
                   const uint16_t *__restrict__ scales, const uint4 *__restrict__ parts,
                   const float *__restrict__ bias, int tokens, int rows, int cols, int share) {
    __shared__ Tile<Q8> s;
    const int first = blockIdx.x * TILE_COLUMNS, token = blockIdx.y * TILE_ROWS;
    const int begin = blockIdx.z * share, stride = cols / 32, here = tokens - token;
    if (threadIdx.x < TILE_ROWS) s.row[threadIdx.x] = token + threadIdx.x;
    __syncthreads();
    const uint4 *matrix = reinterpret_cast<const uint4 *>(quants + size_t(first) * cols);
    float sum[M][N][4] = {};
    tile_product(sum, s,
                 {parts, matrix, scales + size_t(first) * stride, stride, begin,
                  min(begin + share, stride), here, rows - first});
    out += size_t(blockIdx.z) * tokens * rows;
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int row = matrix_row(n, j);
            if (row >= rows) continue;
            const float b = bias && blockIdx.z == 0 ? bias[row] : 0.0f;
#pragma unroll
            for (int i = 0; i < 2 * M; i++) {
                const int m = activation_row(i / 2, i % 2);
                if (m < here)
                    out[size_t(token + m) * rows + row] = sum[i / 2][n][i % 2 * 2 + j] + b;
            }
        }
    }
}

// out[i] = Σ_z sums[z][i], z in order.
extern "C" __global__ void matmul_q8_add(float *__restrict__ out, const float *__restrict__ sums,
                                         int splits, uint64_t n) {
    for (uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; i < n;
         i += uint64_t(gridDim.x) * blockDim.x) {
        float sum = 0.0f;
        for (int z = 0; z < splits; z++) sum += sums[z * n + i];
        out[i] = sum;
    }
}
