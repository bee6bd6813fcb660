// moe_gate_up and moe_down for many tokens: one product on tensor cores, as tile.cuh makes it, per
// tile of up to TILE_ROWS pairs of one expert, as moe_sort.cu lists them, and TILE_COLUMNS of its
// rows.
//
// The contraction runs in steps of two MXFP4 blocks (64 features): 16 KB of activations and 4 KB of
// weights for 64 · 128 · 64 · 2 multiplications. Tiles of fewer pairs skip whole rows of 16: with a
// few pairs per expert the weights' way from memory decides.
//
// Everything is in one order: pairs of an expert by their number, sums by feature, a token's
// experts as in `indices`. A pair's result depends on that pair alone. Which rows share a tile
// changes nothing.
#include "moe.cuh"
#include "tile.cuh"

namespace {

// A quarter's eight features are one word of the block.
struct Mxfp4 {
    using Scale = uint8_t;
    static constexpr int STEP = 2, PIECES = 1;

    static __device__ __forceinline__ void decode(uint32_t (&w)[4], const uint4 (&block)[PIECES],
                                                  int quarter) {
        const uint32_t word = reinterpret_cast<const uint32_t *>(block)[quarter];
        w[0] = fp4x2_to_bf16x2<0>(word), w[1] = fp4x2_to_bf16x2<1>(word);
        w[2] = fp4x2_to_bf16x2<2>(word), w[3] = fp4x2_to_bf16x2<3>(word);
    }
    static __device__ __forceinline__ float scale(Scale code) { return e8m0_to_f32(code); }
};

struct Shared {
    Tile<Mxfp4> tile;
    uint32_t pair[TILE_ROWS];
};

// The sums of a tile of pairs, see tile_product; NaN when the tile's expert is none. `divisor`:
// pairs per row of the activations. False when the tile has no pairs.
__device__ bool expert_product(float (&sum)[M][N][4], Shared &s, uint4 tile, const uint4 *parts,
                               const uint8_t *blocks, const uint8_t *scales, const uint32_t *order,
                               int experts, int rows, int cols, int divisor) {
    const int thread = threadIdx.x, first = blockIdx.x * TILE_COLUMNS, pairs = tile.z;
    if (pairs == 0) return false;
    if (thread < pairs) {
        s.pair[thread] = order[tile.y + thread];
        s.tile.row[thread] = s.pair[thread] / divisor;
    }
    __syncthreads();
    if (tile.x >= uint32_t(experts)) {
        for (int i = 0; i < M * N * 4; i++) (&sum[0][0][0])[i] = quiet_nan();
        return true;
    }
    const int stride = cols / 32;
    const size_t start = (size_t(tile.x) * rows + first) * stride;
    const uint4 *matrix = reinterpret_cast<const uint4 *>(blocks) + start;
    tile_product(sum, s.tile,
                 {parts, matrix, scales + start, stride, 0, stride, pairs, rows - first});
    return true;
}

}  // namespace

// out[pair, i]: gate is row 2i, up row 2i + 1, which one lane holds side by side. `parts` are of
// the tokens. Grid of both: rows / TILE_COLUMNS rounded up, tiles.
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    moe_gate_up_grouped(float *__restrict__ out, const uint8_t *__restrict__ blocks,
                        const uint8_t *__restrict__ scales, const uint16_t *__restrict__ bias,
                        const uint4 *__restrict__ parts, const uint32_t *__restrict__ order,
                        const uint4 *__restrict__ tiles, int experts, int rows, int cols, int k,
                        float alpha, float limit) {
    __shared__ Shared s;
    const uint4 tile = tiles[blockIdx.y];
    float sum[M][N][4] = {};
    if (!expert_product(sum, s, tile, parts, blocks, scales, order, experts, rows, cols, k))
        return;
#pragma unroll
    for (int n = 0; n < N; n++) {
        const int row = matrix_row(n, 0);
        if (row >= rows) continue;
        const uint16_t *b = bias + size_t(min(int(tile.x), experts - 1)) * rows + row;
        const float gate = bf16_to_f32(b[0]), up = bf16_to_f32(b[1]);
#pragma unroll
        for (int i = 0; i < 2 * M; i++) {
            const int m = activation_row(i / 2, i % 2);
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
    if (!expert_product(sum, s, tile, parts, blocks, scales, order, experts, rows, cols, 1))
        return;
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int row = matrix_row(n, j);
            if (row >= rows) continue;
            const float b = bf16_to_f32(bias[size_t(min(int(tile.x), experts - 1)) * rows + row]);
#pragma unroll
            for (int i = 0; i < 2 * M; i++) {
                const int m = activation_row(i / 2, i % 2);
                if (m < int(tile.z))
                    y[size_t(s.pair[m]) * rows + row] = sum[i / 2][n][i % 2 * 2 + j] + b;
            }
        }
    }
}
