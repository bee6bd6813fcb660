// matmul for up to eight rows of x: weights go from memory straight to registers, see matmul.cuh
// for what is added and in which order.
//
// A block of threads computes 16 rows of a matrix, a warp of it one slice. Of 5120 x 2880 that
// makes 320 blocks of 5 warps, 12 warps on each of 132 multiprocessors, all resident; each has
// asked for 4 to 8 KB before it waits: 48 KB and more, where 4.3 TB/s at a latency of 0.7 us need
// 23 KB. Of 128 x 2880, with narrower slices, it is 8 blocks of 15 warps, which ask for two thirds
// of all at once.
//
// Every warp takes x apart for itself, from the first cache: about 60 of the 90 instructions per 1
// KB of weights. A multiprocessor issues four in the clock, so 8,500 of those take 0.11 ms of the
// head's 0.27.
#include "matmul.cuh"

namespace {

constexpr int SUMS = ROWS * TOKENS;
constexpr int X_BLOCKS = 2;  // whose x is asked for at once

// Eight values of a row of x.
struct Values {
    float4 low, high;

    // Of them `left` are there; the others are 0.
    template <bool WIDE> __device__ __forceinline__ void load(const float *x, int left) {
        low = high = make_float4(0, 0, 0, 0);
        if (left > 0) low = load4(x, 0, left, WIDE);
        if (left > 4) high = load4(x, 4, left, WIDE);
    }
    template <int PARTS> __device__ __forceinline__ void split(uint4 (&parts)[PARTS]) const {
        uint4 lo;
        split_bf16x8(parts[0], lo, low, high);
        if constexpr (PARTS == 2) parts[1] = lo;
    }
};

// Weights of a number of blocks of 32 columns on their way from memory, a lane's eight of two rows
// of each.
template <class Format, bool WIDE> struct Batch {
    // 4 KB for a warp, 3 with scales.
    static constexpr int BLOCKS = Format::SCALED ? 6 : 4;
    typename Format::Eight of[BLOCKS][2];
    uint16_t scales[(BLOCKS + 3) / 4][2];  // lane q of four has blocks q, q + 4

    // Blocks [first, end) of rows of `cols`, at most BLOCKS.
    __device__ __forceinline__ void load(const typename Format::Value *const (&row)[2],
                                         const uint16_t *const (&scale)[2], int first, int end,
                                         int cols) {
        const int q = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
            const int c = (first + i) * BLOCK + 8 * q;
            if (first + i >= end) break;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                of[i][r] = {};
                if constexpr (!WIDE)
                    of[i][r] = gather8(row[r] + c, cols - c);
                else if (c < cols)
                    of[i][r] = load_once(
                        reinterpret_cast<const typename Format::Eight *>(row[r] + c));
            }
        }
        if constexpr (Format::SCALED) {
#pragma unroll
            for (int i = 0; i < (BLOCKS + 3) / 4; i++) {
                const int block = min(first + 4 * i + q, end - 1);
                scales[i][0] = __ldg(scale[0] + block), scales[i][1] = __ldg(scale[1] + block);
            }
        }
    }

    __device__ __forceinline__ float scale(int i, int r) const {
        const int from = threadIdx.x % 32 / 4 * 4 + i % 4;
        return bf16_to_f32(__shfl_sync(ALL_LANES, scales[i / 4][r], from));
    }
};

// A slice's sums for eight rows of x.
template <class Format, int PARTS, bool WIDE>
__device__ __forceinline__ void add_slice(float (&sum)[1][4], const Matrix &matrix, const float *x,
                                          int first_row, int tokens, int cols, int slice) {
    using Weights = Batch<Format, WIDE>;
    using Value = typename Format::Value;
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, blocks = (cols + 31) / BLOCK;
    const Value *row[2];
    const uint16_t *scales[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int at = min(first_row + g + 8 * r, matrix.rows - 1);
        row[r] = static_cast<const Value *>(matrix.weight) + size_t(at) * cols;
        scales[r] = Format::SCALED ? matrix.scales + size_t(at) * blocks : nullptr;
    }
    x += size_t(g) * cols;

    int first = slice * (matrix.slice / BLOCK);
    const int end = min(first + matrix.slice / BLOCK, blocks);
    Weights weights;
    weights.load(row, scales, first, end, cols);
#pragma unroll 1
    for (; first < end; first += Weights::BLOCKS) {
        Weights next;
        if (first + Weights::BLOCKS < end)
            next.load(row, scales, first + Weights::BLOCKS, end, cols);
#pragma unroll
        for (int from = 0; from < Weights::BLOCKS; from += X_BLOCKS) {
            Values values[X_BLOCKS];
#pragma unroll
            for (int i = 0; i < X_BLOCKS; i++) {
                const int block = first + from + i, c = block * BLOCK + 8 * q;
                values[i].load<WIDE>(x + c, g < tokens && block < end ? cols - c : 0);
            }
#pragma unroll
            for (int i = from; i < from + X_BLOCKS; i++) {
                if (first + i >= end) break;
                uint4 parts[1][PARTS];
                values[i - from].split(parts[0]);
                const uint4 a[2] = {Format::words(weights.of[i][0]),
                                    Format::words(weights.of[i][1])};
                if constexpr (Format::SCALED)
                    add_block<Format>(sum, a, parts, weights.scale(i, 0), weights.scale(i, 1));
                else
                    add_block<Format>(sum, a, parts, 1.0f, 1.0f);
            }
        }
        weights = next;
    }
}

template <class Format, int PARTS>
__device__ void matmul_few(float (&sums)[MOST_SLICES][SUMS], const Matrices &matrices,
                           const float *x, int tokens, int cols) {
    int block = blockIdx.x;
    const Matrix &matrix = matrix_of_block(matrices, block);
    const int first_row = block * ROWS, slices = (cols + matrix.slice - 1) / matrix.slice;
    const int slice = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (slice < slices) {
        float sum[1][4] = {};
        const bool wide = Format::SCALED || (cols % 8 == 0 && aligned16(matrix.weight) &&
                                             aligned16(x));
        if (wide)
            add_slice<Format, PARTS, true>(sum, matrix, x, first_row, tokens, cols, slice);
        else if constexpr (!Format::SCALED)
            add_slice<Format, PARTS, false>(sum, matrix, x, first_row, tokens, cols, slice);
#pragma unroll
        for (int i = 0; i < 4; i++)
            sums[slice][(lane % 4 * 2 + i % 2) * ROWS + lane / 4 + i / 2 * 8] = sum[0][i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < SUMS; i += blockDim.x) {
        const int token = i / ROWS, row = first_row + i % ROWS;
        if (token >= tokens || row >= matrix.rows) continue;
        float y = 0.0f;
        for (int s = 0; s < slices; s++) y += sums[s][i];
        if (matrix.bias) y += matrix.bias[row];
        matrix.out[size_t(token) * matrix.rows + row] = y;
    }
}

}  // namespace

// Grid: the blocks of all matrices, 16 rows each; a warp for each slice.
#define MATMUL_FEW(name, Format, PARTS)                                                            \
    extern "C" __global__ void __launch_bounds__(32 * MOST_SLICES)                                 \
        name(Matrices matrices, const float *__restrict__ x, int tokens, int cols) {               \
        __shared__ float sums[MOST_SLICES][SUMS];                                                  \
        matmul_few<Format, PARTS>(sums, matrices, x, tokens, cols);                                \
    }

MATMUL_FEW(matmul_few_exact, Bf16, 2)
MATMUL_FEW(matmul_few_bf16, Bf16, 1)
MATMUL_FEW(matmul_q8_few_exact, Q8, 2)
MATMUL_FEW(matmul_q8_few_bf16, Q8, 1)
