// moe_gate_up and moe_down for many tokens: one product on tensor cores per tile of up to PAIRS
// pairs of one expert, as moe_sort.cu lists them, and COLUMNS of its rows; weights are decoded on
// the way from shared memory to the tensor cores.
//
// The contraction runs in steps of two MXFP4 blocks (64 features). Of each block a quarter of a
// warp's lanes, `lane % 4`, takes the features 8·(lane % 4) .. + 8: those are one word of the
// block, and their order in the fragments (0 and 4, 1 and 5, ...) is the one in which
// fp4x2_to_bf16x2 yields them. The activations come in the same order, from moe_split, as hi + lo
// bf16: both are multiplied, so that what a product loses is 2^-17 of it. FP4 is exact in bf16; the
// block's scale multiplies the f32 sum of its 32 products, so every scale is exact as well. These 4
// FMAs per 4 tensor-core products cost a quarter of their time, on units that else idle.
//
// A step moves 16 KB of activations and 4 KB of weights for 64 · 128 · 64 · 2 multiplications.
// Tiles of fewer pairs skip whole rows of 16: with a few pairs per expert the weights' way from
// memory decides.
//
// Everything is in one order: pairs of an expert by their number, sums by feature, a token's
// experts as in `indices`. A pair's result depends on that pair alone. Which rows share a tile
// changes nothing.
#include "moe.cuh"

namespace {

constexpr int COLUMNS = 128;
constexpr int TILE_THREADS = 128;
constexpr int STEP = 2;               // blocks of 32 features
constexpr int PIECES = STEP * 2 * 4;  // 16-byte pieces of a pair's activations: hi, then lo
constexpr int WARP_COLUMNS = COLUMNS / (TILE_THREADS / 32);
constexpr int M = PAIRS / 16, N = WARP_COLUMNS / 8;

// What one step needs, twice: one is read while the other is written.
struct Shared {
    uint4 x[2][PAIRS][PIECES];  // piece p of pair m at p ^ (m % 2 · 4): reads touch every bank once
    uint4 blocks[2][STEP][COLUMNS];
    uint8_t scales[2][STEP][COLUMNS];
    uint32_t row[PAIRS];  // of the activations
    uint32_t pair[PAIRS];
};

// A thread's part of a step, on its way from memory.
struct Fetched {
    static constexpr int X = PAIRS * PIECES / TILE_THREADS, W = STEP * COLUMNS / TILE_THREADS;
    uint4 x[X], blocks[W];
    uint8_t scales[W];

    __device__ void load(const Shared &s, const uint4 *parts, const uint4 *matrix,
                         const uint8_t *scale, int step, int stride, int pairs, int rows) {
        const int thread = threadIdx.x;
#pragma unroll
        for (int i = 0; i < X; i++) {
            const int at = thread + i * TILE_THREADS, m = at / PIECES, piece = at % PIECES;
            // Pieces of a step: 4 per block of hi, then of lo.
            const int column = step * STEP * 4 + piece % (STEP * 4);
            const bool there = m < pairs && column < 4 * stride;
            x[i] = make_uint4(0, 0, 0, 0);
            if (there)
                x[i] = __ldg(parts + size_t(s.row[m]) * (8 * stride) +
                             piece / (STEP * 4) * (4 * stride) + column);
        }
#pragma unroll
        for (int i = 0; i < W; i++) {
            const int at = thread + i * TILE_THREADS, n = at / STEP,
                      block = step * STEP + at % STEP;
            const bool there = n < rows && block < stride;
            blocks[i] = make_uint4(0, 0, 0, 0);
            scales[i] = 0;
            if (there) {
                blocks[i] = load_once(matrix + size_t(n) * stride + block);
                scales[i] = __ldg(scale + size_t(n) * stride + block);
            }
        }
    }

    __device__ void store(Shared &s, int half) const {
        const int thread = threadIdx.x;
#pragma unroll
        for (int i = 0; i < X; i++) {
            const int at = thread + i * TILE_THREADS, m = at / PIECES, piece = at % PIECES;
            s.x[half][m][piece ^ (m % 2 * 4)] = x[i];
        }
#pragma unroll
        for (int i = 0; i < W; i++) {
            const int at = thread + i * TILE_THREADS;
            s.blocks[half][at % STEP][at / STEP] = blocks[i];
            s.scales[half][at % STEP][at / STEP] = scales[i];
        }
    }
};

// sum += what one block of 32 features adds, for PAIRS pairs and the warp's WARP_COLUMNS rows.
__device__ __forceinline__ void multiply(float (&sum)[M][N][4], const Shared &s, int half,
                                         int block, int pairs) {
    const int lane = threadIdx.x % 32, group = lane / 4, quarter = lane % 4;
    const int column = threadIdx.x / 32 * WARP_COLUMNS;
    uint32_t w[N][4];
    float scale[N][2];
#pragma unroll
    for (int n = 0; n < N; n++) {
        const uint4 *of_column = &s.blocks[half][block][column + 8 * n + group];
        const uint32_t word = reinterpret_cast<const uint32_t *>(of_column)[quarter];
        w[n][0] = fp4x2_to_bf16x2<0>(word), w[n][1] = fp4x2_to_bf16x2<1>(word);
        w[n][2] = fp4x2_to_bf16x2<2>(word), w[n][3] = fp4x2_to_bf16x2<3>(word);
        // The columns whose sums this lane holds.
        scale[n][0] = e8m0_to_f32(s.scales[half][block][column + 8 * n + 2 * quarter]);
        scale[n][1] = e8m0_to_f32(s.scales[half][block][column + 8 * n + 2 * quarter + 1]);
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
        if (16 * m >= pairs) break;
        uint4 x[2][2];  // [hi, lo][rows group, group + 8]
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = 16 * m + group + i % 2 * 8;
            const int piece = (i / 2 * STEP + block) * 4 + quarter;
            x[i / 2][i % 2] = s.x[half][row][piece ^ (row % 2 * 4)];
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
            float part[4] = {};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                mma_bf16(part, {x[i][0].x, x[i][1].x, x[i][0].y, x[i][1].y}, {w[n][0], w[n][1]});
                mma_bf16(part, {x[i][0].z, x[i][1].z, x[i][0].w, x[i][1].w}, {w[n][2], w[n][3]});
            }
#pragma unroll
            for (int i = 0; i < 4; i++) sum[m][n][i] = fmaf(part[i], scale[n][i % 2], sum[m][n][i]);
        }
    }
}

// The tile's sums: sum[m][n][2·i + j] of pair 16·m + lane/4 + 8·i and row 8·n + lane%4·2 + j behind
// the warp's first; NaN when the tile's expert is none. `divisor`: pairs per row of the
// activations. False when the tile has no pairs.
__device__ bool tile_product(float (&sum)[M][N][4], Shared &s, uint4 tile, const uint4 *parts,
                             const uint8_t *blocks, const uint8_t *scales, const uint32_t *order,
                             int experts, int rows, int cols, int divisor) {
    const int thread = threadIdx.x, first = blockIdx.x * COLUMNS, pairs = tile.z;
    if (pairs == 0) return false;
    if (thread < pairs) {
        s.pair[thread] = order[tile.y + thread];
        s.row[thread] = s.pair[thread] / divisor;
    }
    __syncthreads();
    if (tile.x >= uint32_t(experts)) {
        for (int i = 0; i < M * N * 4; i++) (&sum[0][0][0])[i] = quiet_nan();
        return true;
    }
    const int stride = cols / 32;
    const size_t start = (size_t(tile.x) * rows + first) * stride;
    const uint4 *matrix = reinterpret_cast<const uint4 *>(blocks) + start;
    const uint8_t *scale = scales + start;
    const int steps = (stride + STEP - 1) / STEP;
    Fetched next;
    next.load(s, parts, matrix, scale, 0, stride, pairs, rows - first);
    next.store(s, 0);
    __syncthreads();
    for (int step = 0; step < steps; step++) {
        const bool more = step + 1 < steps;
        if (more) next.load(s, parts, matrix, scale, step + 1, stride, pairs, rows - first);
#pragma unroll
        for (int block = 0; block < STEP; block++) multiply(sum, s, step % 2, block, pairs);
        if (more) next.store(s, (step + 1) % 2);
        __syncthreads();
    }
    return true;
}

}  // namespace

// out[pair, i]: gate is row 2i, up row 2i + 1, which one lane holds side by side. `parts` are of
// the tokens. Grid of both: rows / COLUMNS rounded up, tiles.
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    moe_gate_up_grouped(float *__restrict__ out, const uint8_t *__restrict__ blocks,
                        const uint8_t *__restrict__ scales, const uint16_t *__restrict__ bias,
                        const uint4 *__restrict__ parts, const uint32_t *__restrict__ order,
                        const uint4 *__restrict__ tiles, int experts, int rows, int cols, int k,
                        float alpha, float limit) {
    __shared__ Shared s;
    const uint4 tile = tiles[blockIdx.y];
    float sum[M][N][4] = {};
    if (!tile_product(sum, s, tile, parts, blocks, scales, order, experts, rows, cols, k)) return;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < N; n++) {
        const int row =
            blockIdx.x * COLUMNS + threadIdx.x / 32 * WARP_COLUMNS + 8 * n + lane % 4 * 2;
        if (row >= rows) continue;
        const uint16_t *b = bias + size_t(min(int(tile.x), experts - 1)) * rows + row;
        const float gate = bf16_to_f32(b[0]), up = bf16_to_f32(b[1]);
#pragma unroll
        for (int i = 0; i < 2 * M; i++) {
            const int m = i / 2 * 16 + lane / 4 + i % 2 * 8;
            const float *h = &sum[i / 2][n][i % 2 * 2];
            if (m < int(tile.z))
                out[size_t(s.pair[m]) * (rows / 2) + row / 2] =
                    clamped_swiglu(h[0] + gate, h[1] + up, alpha, limit);
        }
    }
}

// y[pair, row] = bias + W·a. `parts` are of the pairs.
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    moe_down_grouped(float *__restrict__ y, const uint8_t *__restrict__ blocks,
                     const uint8_t *__restrict__ scales, const uint16_t *__restrict__ bias,
                     const uint4 *__restrict__ parts, const uint32_t *__restrict__ order,
                     const uint4 *__restrict__ tiles, int experts, int rows, int cols) {
    __shared__ Shared s;
    const uint4 tile = tiles[blockIdx.y];
    float sum[M][N][4] = {};
    if (!tile_product(sum, s, tile, parts, blocks, scales, order, experts, rows, cols, 1)) return;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int row =
                blockIdx.x * COLUMNS + threadIdx.x / 32 * WARP_COLUMNS + 8 * n + lane % 4 * 2 + j;
            if (row >= rows) continue;
            const float b = bf16_to_f32(bias[size_t(min(int(tile.x), experts - 1)) * rows + row]);
#pragma unroll
            for (int i = 0; i < 2 * M; i++) {
                const int m = i / 2 * 16 + lane / 4 + i % 2 * 8;
                if (m < int(tile.z))
                    y[size_t(s.pair[m]) * rows + row] = sum[i / 2][n][i % 2 * 2 + j] + b;
            }
        }
    }
}
