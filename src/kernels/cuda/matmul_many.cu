// matmul for more than eight rows of x, and what prepares as many for a library's product: see
// matmul.cuh for what is added and in which order.
//
// A block of threads computes 128 rows of a matrix for 64 of x. Stages of 64 columns of both come
// by copies of 16 bytes while others are multiplied: with bf16 in two parts three stages of 32 KB,
// of which two are under way; two blocks fit a multiprocessor of 228 KB, one that of 99. Weights
// are read from memory once: the up to four blocks that need the same ones stand beside each other.
// Where there are too few tiles for the device every slice has a block of its own; 5120 x 2880 are
// 200 blocks then, which ask for 48 KB of weights on each of 132 multiprocessors, where 4.3 TB/s at
// 0.7 us need 23 KB. Their sums go through memory, and a kernel adds them.
//
// Of eight warps each has 32 rows of the matrix for 32 of x. Products with rows of x that do not
// exist are left out by eights. A lane reads 16 bytes of a row at a time, which are operands as
// they are; they lie where no two of eight lanes ask for the same bank.
#include "async.cuh"
#include "matmul.cuh"

namespace {

constexpr int TILE_ROWS = 128, TILE_TOKENS = 64, TILE_COLUMNS = 64;
constexpr int TILE_THREADS = 256;
constexpr int SHARED = 96 << 10;  // bytes, of all stages
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
constexpr int RESIDENT = 2;  // blocks of a multiprocessor
#else
constexpr int RESIDENT = 1;
#endif
constexpr int WARP_ROWS = 2;      // times ROWS
constexpr int WARP_TOKENS = 4;    // times TOKENS

// What a block of threads multiplies. Rows behind the last are what the shared memory held, and so
// are their sums, which nobody writes.
struct Tile {
    const void *weight;     // of the first row
    const uint16_t *scales;
    const uint4 *parts;     // of x, of the first token: [part][all][eights]
    int all, eights;
    int rows, tokens;       // from the first on
    int cols;
};

// A stage of shared memory: 64 columns of the tile's weights, then of each part of x. A row of 128
// bytes has piece p, 16 bytes, at p ^ 4 when it is odd; one of 64 at p ^ 2 when half of it is.
template <class Format, int PARTS> struct Stage {
    using Value = typename Format::Value;
    static constexpr int EACH = 16 / sizeof(Value);      // columns of a piece
    static constexpr int PIECES = TILE_COLUMNS / EACH;   // of a row of weights
    static constexpr int WEIGHTS = TILE_ROWS * PIECES * 16;  // bytes
    static constexpr int X = TILE_TOKENS * 128;          // of a part
    static constexpr int BYTES = WEIGHTS + PARTS * X;
    static constexpr int COUNT = SHARED / BYTES;

    // Asks for columns from `column` on. WIDE: weights can be copied by 16 bytes.
    template <bool WIDE>
    static __device__ __forceinline__ void load(uint32_t at, const Tile &tile, int column) {
        constexpr int STEP = TILE_THREADS / PIECES;
        const int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
        const int c = column + piece * EACH;
        const int swizzled = PIECES == 8 ? piece ^ row % 2 * 4 : piece ^ row / 2 % 2 * 2;
        const uint32_t to = at + (row * PIECES + swizzled) * 16;
        const Value *from = static_cast<const Value *>(tile.weight) + (row * tile.cols + c);
#pragma unroll
        for (int i = 0; i < TILE_ROWS / STEP; i++) {
            if (row + i * STEP >= tile.rows) break;
            const uint32_t there = to + i * STEP * PIECES * 16;
            if (c >= tile.cols)
                store_shared128(there, make_uint4(0, 0, 0, 0));
            else if constexpr (WIDE)
                async_copy16(there, from + i * STEP * tile.cols);
            else
                store_shared128(there, gather8(from + i * STEP * tile.cols, tile.cols - c));
        }
        const int token = threadIdx.x / 8, eight = threadIdx.x % 8;
        const uint32_t x = at + WEIGHTS + (token * 8 + (eight ^ token % 2 * 4)) * 16;
        const uint4 *values = tile.parts + (token * tile.eights + column / 8 + eight);
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
#pragma unroll
            for (int i = 0; i < TILE_TOKENS; i += TILE_THREADS / 8) {
                if (token + i >= tile.tokens) break;
                async_copy16(x + part * X + i * 128,
                             values + (size_t(part * tile.all) + i) * tile.eights);
            }
        }
    }

    // Where a lane's eight features of the first block lie in rows from `row` on; those of the
    // second are at this ^ half a row.
    static __device__ __forceinline__ uint32_t weights_at(int row) {
        const int q = threadIdx.x % 4;
        if (PIECES == 8) return (row * 8 + (q ^ row % 2 * 4)) * 16;
        return (row * 4 + (q / 2 ^ row / 2 % 2 * 2)) * 16 + q % 2 * 8;
    }
    static __device__ __forceinline__ uint32_t x_at(int token) {
        return WEIGHTS + (token * 8 + (int(threadIdx.x) % 4 ^ token % 2 * 4)) * 16;
    }
    static __device__ __forceinline__ uint4 weights(uint32_t at) {
        if constexpr (PIECES == 8)
            return load_shared128(at);
        else
            return Format::words(load_shared64(at));
    }
};

// The scales of 64 columns that a lane needs: a word for each of its rows.
struct Scales {
    uint32_t of[2 * WARP_ROWS];

    __device__ __forceinline__ void load(const Tile &tile, int row, int column) {
        const int stride = tile.cols / BLOCK, first = column / BLOCK;
        const int second = min(first + 1, stride - 1);
#pragma unroll
        for (int i = 0; i < 2 * WARP_ROWS; i++) {
            const uint16_t *scales = tile.scales + min(row + 8 * i, tile.rows - 1) * stride;
            of[i] = __ldg(scales + first) | uint32_t(__ldg(scales + second)) << 16;
        }
    }
    __device__ __forceinline__ float operator()(int i, int block) const {
        return __uint_as_float(block ? of[i] & 0xffff0000u : of[i] << 16);
    }
};

using Sums = float[WARP_ROWS][WARP_TOKENS][4];

// sum += a stage. `row` and `token` are the lane's first of the tile, `some` the eights of the
// warp's rows of x that there are, and `blocks` of the stage.
template <class Format, int PARTS>
__device__ __forceinline__ void add_stage(Sums &sum, uint32_t at, const Scales &scales, int row,
                                          int token, int some, int blocks) {
    using Shared = Stage<Format, PARTS>;
    const uint32_t weights = at + Shared::weights_at(row), x = at + Shared::x_at(token);
#pragma unroll
    for (int block = 0; block < 2; block++) {
        if (block >= blocks) break;
        uint4 a[WARP_ROWS][2];
#pragma unroll
        for (int i = 0; i < 2 * WARP_ROWS; i++)
            a[i / 2][i % 2] = Shared::weights((weights ^ block * Shared::PIECES * 8) +
                                              i * 8 * Shared::PIECES * 16);
        // Two at a time: products that do not wait for each other, and registers enough.
#pragma unroll
        for (int n = 0; n < WARP_TOKENS; n += 2) {
            if (n >= some) break;
            uint4 b[2][PARTS];
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int part = 0; part < PARTS; part++)
                    b[i][part] = load_shared128((x ^ block * 64) + part * Shared::X +
                                                (n + i) * 8 * 128);
            }
#pragma unroll
            for (int m = 0; m < WARP_ROWS; m++)
                add_block<Format, PARTS>(&sum[m][n], a[m], b, scales(2 * m, block),
                                         scales(2 * m + 1, block));
        }
    }
}

// total += the slices of columns [begin, end), each summed for itself.
template <class Format, int PARTS, bool WIDE>
__device__ __forceinline__ void add_slices(Sums &total, const Tile &tile, uint32_t shared, int row,
                                           int token, int some, int begin, int end, int slice) {
    using Shared = Stage<Format, PARTS>;
    constexpr int AHEAD = Shared::COUNT - 1;
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        const int column = begin + i * TILE_COLUMNS;
        if (column < end) Shared::template load<WIDE>(shared + i * Shared::BYTES, tile, column);
        async_commit();
    }
    Sums sum = {};
    int stage = 0;
#pragma unroll 1
    for (int column = begin, left = slice; column < end; column += TILE_COLUMNS) {
        Scales scales = {};
        if constexpr (Format::SCALED) scales.load(tile, row, column);
        // This stage is there for all, and everybody has read the last one.
        async_wait<AHEAD - 1>();
        __syncthreads();
        const int later = column + AHEAD * TILE_COLUMNS;
        if (later < end)
            Shared::template load<WIDE>(
                shared + (stage == 0 ? AHEAD : stage - 1) * Shared::BYTES, tile, later);
        async_commit();
        add_stage<Format, PARTS>(sum, shared + stage * Shared::BYTES, scales, row, token, some,
                                 (end - column + BLOCK - 1) / BLOCK);
        stage = stage == AHEAD ? 0 : stage + 1;
        left -= TILE_COLUMNS;
        if (left > 0 && column + TILE_COLUMNS < end) continue;
        left = slice;
#pragma unroll
        for (int i = 0; i < WARP_ROWS * WARP_TOKENS * 4; i++) {
            float &slice_sum = sum[i / 4 / WARP_TOKENS][i / 4 % WARP_TOKENS][i % 4];
            total[i / 4 / WARP_TOKENS][i / 4 % WARP_TOKENS][i % 4] += slice_sum;
            slice_sum = 0.0f;
        }
    }
}

template <class Format, int PARTS>
__device__ __forceinline__ void matmul_many(uint32_t shared, const Matrices &matrices,
                                            const uint4 *parts, int tokens, int cols,
                                            int eights) {
    int block = blockIdx.y;
    const Matrix &matrix = matrix_of_block(matrices, block);
    const int split = block % matrix.splits, first_row = block / matrix.splits * TILE_ROWS;
    const int first_token = blockIdx.x * TILE_TOKENS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = warp % 4 * 32 + lane / 4, tokens_before = warp / 4 * 32;
    // Rows of x that exist for this warp, by eights.
    const int some = (tokens - first_token - tokens_before + 7) / 8;
    const size_t above = size_t(first_row) * cols;
    const Tile tile = {static_cast<const typename Format::Value *>(matrix.weight) + above,
                       Format::SCALED ? matrix.scales + above / BLOCK : nullptr,
                       parts + size_t(first_token) * eights,
                       tokens,
                       eights,
                       matrix.rows - first_row,
                       tokens - first_token,
                       cols};
    int begin = 0, end = cols;
    if (matrix.splits > 1)
        begin = split * matrix.slice, end = min(begin + matrix.slice, cols);

    Sums total = {};
    const int token = tokens_before + lane / 4;
    if (Format::SCALED || (cols % 8 == 0 && aligned16(matrix.weight)))
        add_slices<Format, PARTS, true>(total, tile, shared, row, token, some, begin, end,
                                        matrix.slice);
    else if constexpr (!Format::SCALED)
        add_slices<Format, PARTS, false>(total, tile, shared, row, token, some, begin, end,
                                         matrix.slice);

    float *out = matrix.out;
    if (matrix.splits > 1) out = matrix.sums + size_t(split) * tokens * matrix.rows;
#pragma unroll
    for (int i = 0; i < 2 * WARP_ROWS; i++) {
        const int o = first_row + row + 8 * i;
        if (o >= matrix.rows) continue;
        const bool biased = matrix.splits == 1 && matrix.bias;
        const float bias = biased ? matrix.bias[o] : 0.0f;
#pragma unroll
        for (int j = 0; j < 2 * WARP_TOKENS; j++) {
            const int t = first_token + tokens_before + j / 2 * 8 + lane % 4 * 2 + j % 2;
            if (t >= tokens) continue;
            const float sum = total[i / 2][j / 2][i % 2 * 2 + j % 2];
            out[size_t(t) * matrix.rows + o] = biased ? sum + bias : sum;
        }
    }
}

}  // namespace

// x as matmul_split leaves it. Grid: 64 rows of x, the blocks of all matrices.
#define MATMUL_MANY(name, Format, PARTS)                                                           \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, RESIDENT)                           \
        name(Matrices matrices, const uint4 *__restrict__ parts, int tokens, int cols,             \
             int eights) {                                                                         \
        DYNAMIC_SHARED(shared);                                                                    \
        matmul_many<Format, PARTS>(shared_address(shared), matrices, parts, tokens, cols, eights); \
    }

MATMUL_MANY(matmul_many_exact, Bf16, 2)
MATMUL_MANY(matmul_many_bf16, Bf16, 1)
MATMUL_MANY(matmul_q8_many_exact, Q8, 2)
MATMUL_MANY(matmul_q8_many_bf16, Q8, 1)

// parts = x in one or two parts, [part][tokens][eights], zeros behind the columns of x. Grid: a
// thread for eight columns, rows of x.
extern "C" __global__ void matmul_split(uint4 *__restrict__ parts, const float *__restrict__ x,
                                        int tokens, int cols, int eights, int two) {
    const int eight = blockIdx.x * blockDim.x + threadIdx.x, c = 8 * eight;
    if (eight >= eights) return;
    const bool wide = cols % 8 == 0 && aligned16(x);
    for (int t = blockIdx.y; t < tokens; t += gridDim.y) {
        const float *from = x + size_t(t) * cols + c;
        float4 a = make_float4(0, 0, 0, 0), b = a;
        if (c < cols) a = load4(from, 0, cols - c, wide);
        if (c + 4 < cols) b = load4(from, 4, cols - c, wide);
        uint4 hi, lo;
        split_bf16x8(hi, lo, a, b);
        parts[size_t(t) * eights + eight] = hi;
        if (two) parts[(size_t(tokens) + t) * eights + eight] = lo;
    }
}

// out = the sums of all slices in order, and the bias; of no slices, the bias alone. Grid: a thread
// for a row of the largest matrix, rows of x, matrices.
extern "C" __global__ void matmul_add(Matrices matrices, int tokens) {
    const Matrix &matrix = matrices.of[blockIdx.z];
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= matrix.rows) return;
    const float bias = matrix.bias ? matrix.bias[row] : 0.0f;
    for (int t = blockIdx.y; t < tokens; t += gridDim.y) {
        const size_t at = size_t(t) * matrix.rows + row, n = size_t(tokens) * matrix.rows;
        float y = 0.0f;
#pragma unroll 4
        for (int s = 0; s < matrix.splits; s++) y += matrix.sums[s * n + at];
        matrix.out[at] = matrix.bias ? y + bias : y;
    }
}
