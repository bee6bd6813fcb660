// moe_gate_up and moe_down for many rows: (token, expert) pairs sorted by expert on the device, and one
// product on tensor cores per tile of PAIRS pairs of one expert and COLUMNS of its rows, weights decoded on
// the way from shared memory to the tensor cores.
//
// The contraction runs in steps of two MXFP4 blocks (64 features). Of each block a quarter of a warp's
// lanes, `lane % 4`, takes the features 8·(lane % 4) .. + 8: those are one word of the block, and their
// order in the fragments (0 and 4, 1 and 5, ...) is the one in which fp4x2_to_bf16x2 yields them. The
// activations come in the same order, from moe_split, as hi + lo bf16: both are multiplied, so that what a
// product loses is 2^-17 of it. FP4 is exact in bf16; the block's scale multiplies the f32 sum of its 32
// products, so every scale is exact as well. These 4 FMAs per 4 tensor-core products cost a quarter of
// their time, on units that else idle.
//
// A step moves 16 KB of activations and 4 KB of weights for 64 · 128 · 64 · 2 multiplications. Tiles of
// fewer pairs skip whole rows of 16: with a few pairs per expert the weights' way from memory decides.
//
// Everything is in one order: pairs of an expert by their number, sums by feature, a token's experts as in
// `indices`. A pair's result depends on that pair alone. Which rows share a tile changes nothing.
#include "moe.cuh"

namespace {

constexpr int SORT_THREADS = 512;
constexpr int PAIRS = 64;
constexpr int COLUMNS = 128;
constexpr int TILE_THREADS = 128;
constexpr int STEP = 2;                         // blocks of 32 features
constexpr int PIECES = STEP * 2 * 4;            // 16-byte pieces of a pair's activations: hi, then lo
constexpr int WARP_COLUMNS = COLUMNS / (TILE_THREADS / 32);
constexpr int M = PAIRS / 16, N = WARP_COLUMNS / 8;

}  // namespace

// Expert e's pairs, in their order, are order[offsets[e]] .. order[offsets[e + 1] − 1]. Indices that name
// no expert count as one more, number E. Grid: E + 1. A block counts what comes before its expert, so no
// block waits for another.
extern "C" __global__ void __launch_bounds__(SORT_THREADS)
    moe_sort(uint32_t *__restrict__ order, uint32_t *__restrict__ offsets,
             const uint32_t *__restrict__ indices, uint32_t pairs) {
    __shared__ uint32_t lower, equal, of_warp[SORT_THREADS / 32];
    const uint32_t expert = blockIdx.x, thread = threadIdx.x, warp = thread / 32;
    const bool none = expert + 1 == gridDim.x;
    if (thread == 0) lower = equal = 0;
    __syncthreads();
    uint32_t my_lower = 0, my_equal = 0;
    for (uint32_t pair = thread; pair < pairs; pair += SORT_THREADS) {
        my_lower += indices[pair] < expert;
        my_equal += indices[pair] == expert || (none && indices[pair] > expert);
    }
    atomicAdd(&lower, my_lower);
    atomicAdd(&equal, my_equal);
    __syncthreads();
    if (thread == 0) {
        offsets[expert] = lower;
        if (none) offsets[expert + 1] = pairs;
    }
    uint32_t place = lower;
    if (equal == 0) return;
    for (uint32_t begin = 0; begin < pairs; begin += SORT_THREADS) {
        const uint32_t pair = begin + thread;
        const bool here =
            pair < pairs && (indices[pair] == expert || (none && indices[pair] > expert));
        const uint32_t lanes = __ballot_sync(ALL_LANES, here);
        if (thread % 32 == 0) of_warp[warp] = __popc(lanes);
        __syncthreads();
        uint32_t before = __popc(lanes & ((1u << thread % 32) - 1)), all = 0;
        for (uint32_t w = 0; w < SORT_THREADS / 32; w++) {
            before += w < warp ? of_warp[w] : 0;
            all += of_warp[w];
        }
        if (here) order[place + before] = pair;
        place += all;
        __syncthreads();
    }
}

// tiles[i] = (expert, first place in `order`, pairs, 0), at most PAIRS pairs each; the rest of `count`
// tiles has no pairs. One warp.
extern "C" __global__ void moe_tiles(uint4 *__restrict__ tiles, const uint32_t *__restrict__ offsets,
                                     uint32_t experts, uint32_t count) {
    const uint32_t lane = threadIdx.x;
    uint32_t next = 0;
    for (uint32_t begin = 0; begin < experts; begin += 32) {
        const uint32_t expert = begin + lane;
        const uint32_t first = expert < experts ? offsets[expert] : 0;
        const uint32_t pairs = expert < experts ? offsets[expert + 1] - first : 0;
        const uint32_t mine = (pairs + PAIRS - 1) / PAIRS;
        uint32_t up_to = mine;  // tiles of this lane and the lower ones
        for (uint32_t by = 1; by < 32; by *= 2) {
            const uint32_t lower = __shfl_up_sync(ALL_LANES, up_to, by);
            up_to += lane >= by ? lower : 0;
        }
        for (uint32_t i = 0; i < mine; i++)
            tiles[next + up_to - mine + i] =
                make_uint4(expert, first + i * PAIRS, min(pairs - i * PAIRS, uint32_t(PAIRS)), 0);
        next += __shfl_sync(ALL_LANES, up_to, 31);
    }
    for (uint32_t i = next + lane; i < count; i += 32) tiles[i] = make_uint4(0, 0, 0, 0);
}

// parts[row] = hi of x[row], then lo, each in the order 0 4 1 5 2 6 3 7 of every eight features. A thread
// per eight features.
extern "C" __global__ void moe_split(uint4 *__restrict__ parts, const float4 *__restrict__ x, int cols,
                                     uint64_t eights) {
    const int width = cols / 8;
    for (uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; i < eights;
         i += uint64_t(gridDim.x) * blockDim.x) {
        const float4 low = x[2 * i], high = x[2 * i + 1];
        const float v[8] = {low.x, high.x, low.y, high.y, low.z, high.z, low.w, high.w};
        uint32_t hi[4], lo[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const Bf16Parts a = split_bf16(v[2 * j]), b = split_bf16(v[2 * j + 1]);
            hi[j] = uint32_t(a.hi) | uint32_t(b.hi) << 16;
            lo[j] = uint32_t(a.lo) | uint32_t(b.lo) << 16;
        }
        uint4 *to = parts + i / width * (2 * width) + i % width;
        to[0] = make_uint4(hi[0], hi[1], hi[2], hi[3]);
        to[width] = make_uint4(lo[0], lo[1], lo[2], lo[3]);
    }
}

namespace {

// What one step needs, twice: one is read while the other is written.
struct Shared {
    uint4 x[2][PAIRS][PIECES];      // piece p of pair m at p ^ (m % 2 · 4): reads touch every bank once
    uint4 blocks[2][STEP][COLUMNS];
    uint8_t scales[2][STEP][COLUMNS];
    uint32_t row[PAIRS];            // of the activations
    uint32_t pair[PAIRS];
};

// A thread's part of a step, on its way from memory.
struct Fetched {
    static constexpr int X = PAIRS * PIECES / TILE_THREADS, W = STEP * COLUMNS / TILE_THREADS;
    uint4 x[X], blocks[W];
    uint8_t scales[W];

    __device__ void load(const Shared &s, const uint4 *parts, const uint4 *matrix, const uint8_t *scale,
                         int step, int stride, int pairs, int rows) {
        const int thread = threadIdx.x;
#pragma unroll
        for (int i = 0; i < X; i++) {
            const int at = thread + i * TILE_THREADS, m = at / PIECES, piece = at % PIECES;
            // Pieces of a step: 4 per block of hi, then of lo.
            const int column = step * STEP * 4 + piece % (STEP * 4);
            const bool there = m < pairs && column < 4 * stride;
            x[i] = make_uint4(0, 0, 0, 0);
            if (there)
                x[i] = __ldg(parts + size_t(s.row[m]) * (8 * stride) + piece / (STEP * 4) * (4 * stride) +
                             column);
        }
#pragma unroll
        for (int i = 0; i < W; i++) {
            const int at = thread + i * TILE_THREADS, n = at / STEP, block = step * STEP + at % STEP;
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
__device__ __forceinline__ void multiply(float (&sum)[M][N][4], const Shared &s, int half, int block,
                                         int pairs) {
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

// The tile's sums: sum[m][n][2·i + j] of pair 16·m + lane/4 + 8·i and row 8·n + lane%4·2 + j behind the
// warp's first; NaN when the tile's expert is none. `divisor`: pairs per row of the activations. False
// when the tile has no pairs.
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

// out[pair, i]: gate is row 2i, up row 2i + 1, which one lane holds side by side. `parts` are of the
// tokens. Grid of both: rows / COLUMNS rounded up, tiles.
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
        const int row = blockIdx.x * COLUMNS + threadIdx.x / 32 * WARP_COLUMNS + 8 * n + lane % 4 * 2;
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
                if (m < int(tile.z)) y[size_t(s.pair[m]) * rows + row] = sum[i / 2][n][i % 2 * 2 + j] + b;
            }
        }
    }
}

// out[t,:] = Σ_j weights[t,j] · y[t·k + j,:], j in order.
extern "C" __global__ void moe_combine(float *__restrict__ out, const float *__restrict__ y,
                                       const float *__restrict__ weights, int rows, int k, uint64_t n) {
    for (uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; i < n;
         i += uint64_t(gridDim.x) * blockDim.x) {
        const uint64_t first = i / rows * k;
        float sum = 0.0f;
        for (int j = 0; j < k; j++) sum += weights[first + j] * y[(first + j) * rows + i % rows];
        out[i] = sum;
    }
}
