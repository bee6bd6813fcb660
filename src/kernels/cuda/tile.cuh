// Products on tensor cores with weights in blocks of 32 that share a scale: a tile is up to
// TILE_ROWS rows of activations times TILE_COLUMNS rows of a matrix. Weights are decoded on the way
// from shared memory to the tensor cores, as `Format` says:
//
//     STEP                       blocks of a row that are fetched at a time
//     PIECES                     16-byte pieces of a block
//     Scale, scale(Scale)        the type of a scale, and its value
//     decode(words, block, q)    features 8q .. + 8 of a block, exact in bf16, two to a word
//
// Of each block a quarter of a warp's lanes, `lane % 4`, takes eight features in the order 0 and 4,
// 1 and 5, ... that `decode` yields. The activations come in the same order, from tile_split, as
// hi + lo bf16: both are multiplied, so that what a product loses is 2^-17 of it. The block's scale
// multiplies the f32 sum of its 32 products, so every scale is exact as well. These 4 additions and 4
// FMAs per 4 tensor-core products cost half of their time, on units that else idle.
//
// A row's sums are added in the order of its features and depend on that row alone.
#pragma once
#include "products.cuh"

constexpr int TILE_ROWS = 64;
constexpr int TILE_COLUMNS = 128;
constexpr int TILE_THREADS = 128;

namespace {

constexpr int WARP_COLUMNS = TILE_COLUMNS / (TILE_THREADS / 32);
constexpr int M = TILE_ROWS / 16, N = WARP_COLUMNS / 8;

// What one step needs, twice: one is read while the other is written.
template <class Format> struct Tile {
    static constexpr int X_PIECES = Format::STEP * 2 * 4;  // of a row's activations: hi, then lo

    // Piece p of row m at p ^ (m % 2 · 4): reads touch every bank once.
    uint4 x[2][TILE_ROWS][X_PIECES];
    uint4 blocks[2][Format::STEP][TILE_COLUMNS][Format::PIECES];
    typename Format::Scale scales[2][Format::STEP][TILE_COLUMNS];
    uint32_t row[TILE_ROWS];  // of the activations
};

// What a tile reads: blocks [begin, end) of `stride` in each row.
template <class Format> struct Operands {
    const uint4 *parts;   // of the activations, as tile_split leaves them
    const uint4 *blocks;  // of the tile's first row of the matrix
    const typename Format::Scale *scales;
    int stride, begin, end;
    int rows, columns;  // that exist, up to a whole tile of them and beyond
};

// A thread's share of a step, on its way from memory.
template <class Format> struct Fetched {
    using Shared = Tile<Format>;
    static constexpr int STEP = Format::STEP, X_PIECES = Shared::X_PIECES;
    static constexpr int W_PIECES = STEP * Format::PIECES;  // of a row of the matrix
    static constexpr int X = TILE_ROWS * X_PIECES / TILE_THREADS;
    static constexpr int W = TILE_COLUMNS * W_PIECES / TILE_THREADS;
    static constexpr int S = TILE_COLUMNS * STEP / TILE_THREADS;
    uint4 x[X], blocks[W];
    typename Format::Scale scales[S];

    __device__ void load(const Shared &s, const Operands<Format> &from, int first) {
        const int thread = threadIdx.x, stride = from.stride;
#pragma unroll
        for (int i = 0; i < X; i++) {
            const int at = thread + i * TILE_THREADS, m = at / X_PIECES, piece = at % X_PIECES;
            // Pieces of a step: 4 per block of hi, then of lo.
            const int column = first * 4 + piece % (STEP * 4);
            const bool there = m < from.rows && column < 4 * from.end;
            x[i] = make_uint4(0, 0, 0, 0);
            if (there)
                x[i] = __ldg(from.parts + size_t(s.row[m]) * (8 * stride) +
                             piece / (STEP * 4) * (4 * stride) + column);
        }
#pragma unroll
        for (int i = 0; i < W; i++) {
            const int at = thread + i * TILE_THREADS, n = at / W_PIECES, piece = at % W_PIECES;
            const bool there = n < from.columns && first + piece / Format::PIECES < from.end;
            blocks[i] = make_uint4(0, 0, 0, 0);
            if (there)
                blocks[i] =
                    load_once(from.blocks + (size_t(n) * stride + first) * Format::PIECES + piece);
        }
#pragma unroll
        for (int i = 0; i < S; i++) {
            const int at = thread + i * TILE_THREADS, n = at / STEP, block = first + at % STEP;
            const bool there = n < from.columns && block < from.end;
            scales[i] = 0;
            if (there) scales[i] = __ldg(from.scales + size_t(n) * stride + block);
        }
    }

    __device__ void store(Shared &s, int half) const {
        const int thread = threadIdx.x;
#pragma unroll
        for (int i = 0; i < X; i++) {
            const int at = thread + i * TILE_THREADS, m = at / X_PIECES, piece = at % X_PIECES;
            s.x[half][m][piece ^ (m % 2 * 4)] = x[i];
        }
#pragma unroll
        for (int i = 0; i < W; i++) {
            const int at = thread + i * TILE_THREADS, n = at / W_PIECES, piece = at % W_PIECES;
            s.blocks[half][piece / Format::PIECES][n][piece % Format::PIECES] = blocks[i];
        }
#pragma unroll
        for (int i = 0; i < S; i++) {
            const int at = thread + i * TILE_THREADS;
            s.scales[half][at % STEP][at / STEP] = scales[i];
        }
    }
};

// sum += what one block of 32 features adds, for TILE_ROWS rows and the warp's WARP_COLUMNS of the
// matrix.
template <class Format>
__device__ __forceinline__ void multiply(float (&sum)[M][N][4], const Tile<Format> &s, int half,
                                         int block, int rows) {
    const int lane = threadIdx.x % 32, group = lane / 4, quarter = lane % 4;
    const int column = threadIdx.x / 32 * WARP_COLUMNS;
    uint32_t w[N][4];
    float scale[N][2];
#pragma unroll
    for (int n = 0; n < N; n++) {
        Format::decode(w[n], s.blocks[half][block][column + 8 * n + group], quarter);
        // The columns whose sums this lane holds.
        scale[n][0] = Format::scale(s.scales[half][block][column + 8 * n + 2 * quarter]);
        scale[n][1] = Format::scale(s.scales[half][block][column + 8 * n + 2 * quarter + 1]);
    }
    // Up to 8 rows: hi and lo are the upper and lower half of one operand, for half the products.
    if (rows <= 8) {
        const uint4 hi = s.x[half][group][(block * 4 + quarter) ^ (group % 2 * 4)];
        const uint4 lo = s.x[half][group][((Format::STEP + block) * 4 + quarter) ^ (group % 2 * 4)];
#pragma unroll
        for (int n = 0; n < N; n++) {
            float part[4] = {};
            mma_bf16(part, {hi.x, lo.x, hi.y, lo.y}, {w[n][0], w[n][1]});
            mma_bf16(part, {hi.z, lo.z, hi.w, lo.w}, {w[n][2], w[n][3]});
#pragma unroll
            for (int i = 0; i < 2; i++)
                sum[0][n][i] = fmaf(part[i] + part[i + 2], scale[n][i], sum[0][n][i]);
        }
        return;
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
        if (16 * m >= rows) break;
        uint4 x[2][2];  // [hi, lo][rows group, group + 8]
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = 16 * m + group + i % 2 * 8;
            const int piece = (i / 2 * Format::STEP + block) * 4 + quarter;
            x[i / 2][i % 2] = s.x[half][row][piece ^ (row % 2 * 4)];
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
            // Apart from each other, as above: a row has the same bits in any tile.
            float part[2][4] = {};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                mma_bf16(part[i], {x[i][0].x, x[i][1].x, x[i][0].y, x[i][1].y}, {w[n][0], w[n][1]});
                mma_bf16(part[i], {x[i][0].z, x[i][1].z, x[i][0].w, x[i][1].w}, {w[n][2], w[n][3]});
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
                sum[m][n][i] = fmaf(part[0][i] + part[1][i], scale[n][i % 2], sum[m][n][i]);
        }
    }
}

// Whose sum a lane holds in sum[m][n][2·i + j]: the row of the tile's activations, and the row of
// the matrix.
__device__ __forceinline__ int activation_row(int m, int i) {
    return 16 * m + int(threadIdx.x) % 32 / 4 + 8 * i;
}
__device__ __forceinline__ int matrix_row(int n, int j) {
    const int thread = threadIdx.x;
    return blockIdx.x * TILE_COLUMNS + thread / 32 * WARP_COLUMNS + 8 * n + thread % 4 * 2 + j;
}

// Adds the tile's products to `sum`. All threads know s.row.
template <class Format>
__device__ void tile_product(float (&sum)[M][N][4], Tile<Format> &s, const Operands<Format> &of) {
    constexpr int STEP = Format::STEP;
    Fetched<Format> next;
    next.load(s, of, of.begin);
    next.store(s, 0);
    __syncthreads();
    for (int first = of.begin, half = 0; first < of.end; first += STEP, half ^= 1) {
        const bool more = first + STEP < of.end;
        if (more) next.load(s, of, first + STEP);
#pragma unroll
        for (int block = 0; block < STEP; block++) multiply(sum, s, half, block, of.rows);
        if (more) next.store(s, half ^ 1);
        __syncthreads();
    }
}

}  // namespace
