// The products of matmul.cuh for more than 8 rows of x: weights and x, which was taken apart before, go
// through shared memory in stages of two blocks of 32 columns.
//
// A block of threads computes MANY_ROWS rows of the weight times TOKENS rows of x, and either all
// slices of them or some, whose sums it leaves for matmul_add. Three stages of up to 32 KB are under
// way on each of two blocks of threads of a multiprocessor. Of 64 rows of x and an I of 2880 a tile
// reads 737 KB of each; the weights once, x once for every 128 rows of the weight, from the second
// cache: 29 MB of each for queries, keys and values.
#pragma once
#include "matmul.cuh"

namespace {

constexpr int MANY_ROWS = 128;
constexpr int MANY_THREADS = 256;
constexpr int STAGES = 3;
constexpr int STEP = 2;  // blocks of a stage

template <class Form, int PARTS, int TOKENS> struct Many {
    // Warps side by side over rows of the weight and over tokens; mma's of a warp.
    static constexpr int ACROSS = TOKENS >= 32 ? 2 : 1, DOWN = MANY_THREADS / 32 / ACROSS;
    static constexpr int M = MANY_ROWS / DOWN / 16, N = TOKENS / ACROSS / 8;
    // Of a stage: bytes of a row of the weight, of all, and of x.
    static constexpr int ROW = STEP * Form::BYTES, WEIGHTS = MANY_ROWS * ROW;
    static constexpr int X = PARTS * TOKENS * 128;
    static constexpr int STAGE = WEIGHTS + X;
};

// Where 16-byte piece `piece` of a row is in shared memory, such that reads touch every bank once. Rows
// of 128 bytes (bf16), and of 64 (8 bits).
template <int ROW> __device__ __forceinline__ uint32_t place(int row, int piece) {
    const int swizzled = ROW == 128 ? piece ^ row % 2 * 4 : piece ^ row / 2 % 2 * 2;
    return uint32_t(row * ROW + swizzled * 16);
}

// Step `step` of all into `stage`: of rows behind the last, the last; of columns behind the last, zeros.
template <class Form, int PARTS, int TOKENS>
__device__ __forceinline__ void fetch(uint32_t stage, const Matrix &m, int first_row,
                                      const uint16_t *parts, int first_token, int tokens, int cols,
                                      int step, bool wide) {
    using C = Many<Form, PARTS, TOKENS>;
    constexpr int PIECES = C::ROW / 16;
    const int padded = (cols + 31) / 32 * 32;
    for (int i = threadIdx.x; i < MANY_ROWS * PIECES; i += MANY_THREADS) {
        const int row = i / PIECES, piece = i % PIECES, from_row = min(first_row + row, m.rows - 1);
        const uint32_t to = stage + place<C::ROW>(row, piece);
        if constexpr (Form::SCALED) {
            const int column = step * STEP * 32 + piece * 16;
            const uint8_t *w = static_cast<const uint8_t *>(m.weight) + size_t(from_row) * cols;
            if (column < cols) async_copy16(to, w + column);
        } else {
            const int column = step * STEP * 32 + piece * 8;
            const uint16_t *w = static_cast<const uint16_t *>(m.weight) + size_t(from_row) * cols;
            if (wide && column < cols) async_copy16(to, w + column);
            else store_shared128(to, Form::load(m, from_row, column, cols, false));
        }
    }
    for (int i = threadIdx.x; i < PARTS * TOKENS * 8; i += MANY_THREADS) {
        const int row = i / 8, piece = i % 8, column = step * STEP * 32 + piece * 8;
        const int part = row / TOKENS, token = min(first_token + row % TOKENS, tokens - 1);
        if (column < padded)
            async_copy16(stage + C::WEIGHTS + place<128>(row, piece),
                         parts + (size_t(part) * tokens + token) * padded + column);
    }
}

template <class Form>
__device__ __forceinline__ uint4 fragment(uint32_t rows, int row, int block, int q) {
    if constexpr (Form::SCALED)
        return Form::decode(load_shared64(rows + place<64>(row, 2 * block + q / 2) + q % 2 * 8));
    else
        return Form::decode(load_shared128(rows + place<128>(row, 4 * block + q)));
}

// The same, but what is computed from it is not computed before: addresses of the outputs would take
// the registers of the sums throughout.
__device__ __forceinline__ int not_before(int i) {
#if defined(__CUDACC__)
    asm volatile("" : "+r"(i));
#endif
    return i;
}

// Grid: tokens / TOKENS rounded up · tiles of all matrices, shares of slices. With one share the sums go
// to the matrices' outputs, with more to `slices`: [slice][all outputs, in a row].
template <class Form, int PARTS, int TOKENS>
__device__ void many(const Matrices &matrices, float *sums, const uint16_t *parts, int tokens,
                     int cols, int share, uint64_t outputs) {
    using C = Many<Form, PARTS, TOKENS>;
    DYNAMIC_SHARED(memory);
    const uint32_t base = shared_address(memory);
    const int token_tiles = (tokens + TOKENS - 1) / TOKENS;
    int tile = blockIdx.x / token_tiles;
    const Matrix m = matrix_of_tile(matrices, tile);
    const int first_row = tile * MANY_ROWS, first_token = blockIdx.x % token_tiles * TOKENS;
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, warp = threadIdx.x / 32;
    const int row = warp / C::ACROSS * (16 * C::M), column = warp % C::ACROSS * (8 * C::N);
    const int blocks = (cols + 31) / 32;
    constexpr int STEPS = SLICE / STEP;
    const int begin = blockIdx.y * share * STEPS;
    const int end = min(begin + share * STEPS, (blocks + STEP - 1) / STEP);
    const bool wide = Form::wide(m, cols);
    // `matrices.of[0].out` is the first of all outputs.
    const size_t first_output = m.out - matrices.of[0].out;

    const auto fetch_step = [&](int step) {
        if (step < end)
            fetch<Form, PARTS, TOKENS>(base + step % STAGES * C::STAGE, m, first_row, parts,
                                       first_token, tokens, cols, step, wide);
        async_commit();
    };
    for (int i = 0; i < STAGES - 1; i++) fetch_step(begin + i);
    float sum[C::M][C::N][4] = {}, total[C::M][C::N][4] = {};
#pragma unroll 1
    for (int step = begin; step < end; step++) {
        async_wait<STAGES - 2>();
        __syncthreads();
        fetch_step(step + STAGES - 1);
        const uint32_t weights = base + step % STAGES * C::STAGE, x = weights + C::WEIGHTS;
#pragma unroll
        for (int block = 0; block < STEP; block++) {
            if (step * STEP + block >= blocks) break;
            uint4 tokens_of[C::N][PARTS];
#pragma unroll
            for (int n = 0; n < C::N; n++)
#pragma unroll
                for (int part = 0; part < PARTS; part++)
                    tokens_of[n][part] = load_shared128(
                        x + place<128>(part * TOKENS + column + 8 * n + g, 4 * block + q));
#pragma unroll
            for (int i = 0; i < C::M; i++) {
                const int r = row + 16 * i + g;
                float scale[2] = {};
                if constexpr (Form::SCALED)
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        scale[half] = bf16_to_f32(
                            __ldg(m.scales
                                  + size_t(min(first_row + r + 8 * half, m.rows - 1)) * blocks
                                  + step * STEP + block));
                const uint4 low = fragment<Form>(weights, r, block, q);
                const uint4 high = fragment<Form>(weights, r + 8, block, q);
#pragma unroll
                for (int n = 0; n < C::N; n++)
                    multiply<Form, PARTS>(sum[i][n], low, high, tokens_of[n], scale);
            }
        }
        if ((step + 1) % STEPS && step + 1 < end) continue;
        // The end of a slice.
        const bool direct = gridDim.y == 1, done = step + 1 == end;
        const size_t slice = direct ? 0 : step / STEPS * outputs + first_output;
        float *to = direct ? m.out : sums + slice;
        const int o = not_before(first_row + row + g), token = first_token + column + 2 * q;
#pragma unroll
        for (int i = 0; i < C::M; i++)
#pragma unroll
            for (int n = 0; n < C::N; n++)
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const int r = o + 16 * i + k / 2 * 8, t = token + 8 * n + k % 2;
                    float y = sum[i][n][k];
                    sum[i][n][k] = 0.0f;
                    if (direct) {
                        y = total[i][n][k] += y;
                        if (m.bias && r < m.rows) y += m.bias[r];
                    }
                    if ((done || !direct) && r < m.rows && t < tokens)
                        to[size_t(t) * m.rows + r] = y;
                }
    }
}

}  // namespace
