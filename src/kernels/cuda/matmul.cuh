// Dense products on tensor cores: out[t,o] = bias[o] + Σ_i w[o,i]·x[t,i], w: [O,I] in bf16 or 8 bits
// as `Form` says, x: [T,I] f32. 16 rows of the weight are mma.sync's rows, 8 rows of x its columns.
//
// x is two bf16, hi + lo, which leaves 2^-17 of it out, or hi alone (PARTS).
//
// **A row of the result has the same bits in every shape, at any T and any place.** A slice is 10
// blocks of 32 columns of I. Within a slice, block after block: hi times its first 16 features, hi
// times the other 16, lo likewise, all into one sum (in 8 bits into a sum of the block's own, which
// goes into the slice's by one FMA with the block's scale). Slices are added in order, then the bias.
//
// Which feature is where in an mma decides how its sum rounds, so that is fixed too: of a block the
// lanes of quarter q hold features 8q .. 8q + 8, which is one 16-byte load of a row of bf16; the
// first mma takes 0 to 3 of them, the second 4 to 7.
#pragma once
#include "async.cuh"
#include "products.cuh"

// A matrix [rows, cols] and where its product [T, rows] goes. `tiles` is rows / the rows of a block of
// threads, rounded up.
struct Matrix {
    float *out;
    const void *weight;      // bf16, or i8
    const uint16_t *scales;  // of i8
    const float *bias;       // or null
    int rows, tiles;
};

// Matrices that are multiplied with the same x, in one launch: some of a layer are so small that the
// launch would take longer than the product. Those that are not there have no tiles.
struct Matrices {
    Matrix of[3];
};

namespace {

constexpr int SLICE = 10;  // blocks of 32 columns
constexpr int FEW_ROWS = 16;  // of the weight, of a block of threads of `few`
constexpr int MOST_WARPS = 16;

// The matrix of tile `tile`, which becomes the one within it. Not by an index that only the device
// knows: that would put the matrices into local memory.
__device__ __forceinline__ Matrix matrix_of_tile(const Matrices &all, int &tile) {
    if (tile < all.of[0].tiles) return all.of[0];
    tile -= all.of[0].tiles;
    if (tile < all.of[1].tiles) return all.of[1];
    tile -= all.of[1].tiles;
    return all.of[2];
}

// Columns [8q, 8q + 8) of a block of 32 of one row, as bf16; columns from `cols` on are 0.
struct Bf16Form {
    using Words = uint4;
    static constexpr int BYTES = 64;  // of a block of a row
    static constexpr bool SCALED = false;

    static __device__ __forceinline__ bool wide(const Matrix &m, int cols) {
        return cols % 8 == 0 && aligned16(m.weight);
    }
    static __device__ __forceinline__ Words load(const Matrix &m, int row, int column, int cols,
                                                 bool wide) {
        const uint16_t *w = static_cast<const uint16_t *>(m.weight) + size_t(row) * cols + column;
        if (wide)
            return column < cols ? load_once(reinterpret_cast<const uint4 *>(w))
                                 : make_uint4(0, 0, 0, 0);
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t low = column + 2 * i < cols ? w[2 * i] : 0;
            const uint32_t high = column + 2 * i + 1 < cols ? w[2 * i + 1] : 0;
            words[i] = high << 16 | low;
        }
        return make_uint4(words[0], words[1], words[2], words[3]);
    }
    static __device__ __forceinline__ uint4 decode(Words words) { return words; }
};

// The same in 8 bits: a quant is a bf16. `cols` is a multiple of 32 and all is aligned.
struct Q8Form {
    using Words = uint2;
    static constexpr int BYTES = 32;
    static constexpr bool SCALED = true;

    static __device__ __forceinline__ bool wide(const Matrix &, int) { return true; }
    static __device__ __forceinline__ Words load(const Matrix &m, int row, int column, int cols,
                                                 bool) {
        const uint8_t *w = static_cast<const uint8_t *>(m.weight) + size_t(row) * cols + column;
        return __ldg(reinterpret_cast<const uint2 *>(w));
    }
    static __device__ __forceinline__ uint4 decode(Words words) {
        uint32_t out[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            // The 7 lower bits of a quant in a bf16 of exponent 7 are 128 + those; 128 is too much,
            // 256 where the sign bit is set.
            const uint32_t pair = __byte_perm(words.x, words.y, 0x1100 + 0x2222 * i);
            out[i] = add_bf16x2((pair & 0x007f007fu) | 0x43004300u,
                                (pair & 0x00800080u) | 0xc300c300u);
        }
        return make_uint4(out[0], out[1], out[2], out[3]);
    }

    // Both halves of a word of two bf16, added to another two. Exact where the sums are bf16.
    static __device__ __forceinline__ uint32_t add_bf16x2(uint32_t a, uint32_t b) {
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
};

// sum += what a block of 32 columns adds for 16 rows of the weight and 8 of x. `low`, `high`: the
// lane's eight features of rows g and g + 8; `x`: those of x's row g, by part; `scale`: of both rows.
template <class Form, int PARTS>
__device__ __forceinline__ void multiply(float (&sum)[4], uint4 low, uint4 high,
                                         const uint4 (&x)[PARTS], const float (&scale)[2]) {
    const uint32_t first[4] = {low.x, high.x, low.y, high.y};
    const uint32_t second[4] = {low.z, high.z, low.w, high.w};
    float of_block[4] = {};
    float(&to)[4] = Form::SCALED ? of_block : sum;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        mma_bf16(to, first, {x[part].x, x[part].y});
        mma_bf16(to, second, {x[part].z, x[part].w});
    }
    if constexpr (Form::SCALED)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] = fmaf(of_block[i], scale[i / 2], sum[i]);
}

// ---- up to 8 rows of x: weights go straight to registers ----

// x[column .. + 8] of a row in PARTS bf16 parts.
template <int PARTS>
__device__ __forceinline__ void split_eight(uint4 (&parts)[PARTS], const float (&v)[8]) {
    uint32_t words[2][4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        split_bf16x2(words[0][i], words[1][i], v[2 * i], v[2 * i + 1]);
#pragma unroll
    for (int part = 0; part < PARTS; part++)
        parts[part] = make_uint4(words[part][0], words[part][1], words[part][2], words[part][3]);
}

// A block of threads computes FEW_ROWS rows of the weight, a warp the slices w, w + warps, ... of
// them. A warp asks for HALF blocks of 32 columns at once, 10 KB of bf16: of an I of 2880 (9 slices)
// three blocks of threads, 27 warps, are resident on a multiprocessor and have 276 KB under way at
// most, where 4.3 TB/s at a latency of 0.7 µs need 23. x is read where it lies, and taken apart by
// every block of threads.
constexpr int HALF = SLICE / 2;

template <class Form, int PARTS>
__device__ void few(float (&partial)[MOST_WARPS][FEW_ROWS * 8], const Matrices &matrices,
                    const float *x, int tokens, int cols) {
    int tile = blockIdx.x;
    const Matrix m = matrix_of_tile(matrices, tile);
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32, thread = threadIdx.x;
    const int blocks = (cols + 31) / 32, slices = (blocks + SLICE - 1) / SLICE;
    const int row = tile * FEW_ROWS + g, last = m.rows - 1;
    const int rows[2] = {min(row, last), min(row + 8, last)};
    const bool wide = Form::wide(m, cols), wide_x = cols % 8 == 0 && aligned16(x);
    float y = 0.0f;
    for (int begin = 0; begin < slices; begin += warps) {
        const int slice = begin + warp, end = min((slice + 1) * SLICE, blocks);
        float sum[4] = {};
#pragma unroll 1
        for (int first = slice * SLICE; first < end; first += HALF) {
            typename Form::Words words[HALF][2];
            float scale[HALF][2] = {};
#pragma unroll
            for (int i = 0; i < HALF; i++) {
                const int block = min(first + i, end - 1);
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    words[i][r] = Form::load(m, rows[r], 32 * block + 8 * q, cols, wide);
                    if constexpr (Form::SCALED)
                        scale[i][r] =
                            bf16_to_f32(__ldg(m.scales + size_t(rows[r]) * blocks + block));
                }
            }
#pragma unroll
            for (int i = 0; i < HALF; i++) {
                if (first + i >= end) break;
                const int column = 32 * (first + i) + 8 * q;
                float v[8] = {};
                if (g < tokens && column < cols) {
                    const float *from = x + size_t(g) * cols + column;
                    if (wide_x) {
                        const float4 a = __ldg(reinterpret_cast<const float4 *>(from));
                        const float4 b = __ldg(reinterpret_cast<const float4 *>(from) + 1);
                        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
                        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
                    } else {
#pragma unroll
                        for (int k = 0; k < 8; k++) v[k] = column + k < cols ? from[k] : 0.0f;
                    }
                }
                uint4 parts[PARTS];
                split_eight<PARTS>(parts, v);
                multiply<Form, PARTS>(sum, Form::decode(words[i][0]), Form::decode(words[i][1]),
                                      parts, scale[i]);
            }
        }
        // [row][token] of the slice.
#pragma unroll
        for (int i = 0; i < 4; i++) partial[warp][(g + i / 2 * 8) * 8 + 2 * q + i % 2] = sum[i];
        __syncthreads();
        if (thread < FEW_ROWS * 8)
            for (int w = 0; w < min(warps, slices - begin); w++) y += partial[w][thread];
        __syncthreads();
    }
    const int o = tile * FEW_ROWS + thread / 8, token = thread % 8;
    if (thread < FEW_ROWS * 8 && o < m.rows && token < tokens)
        m.out[size_t(token) * m.rows + o] = y + (m.bias ? m.bias[o] : 0.0f);
}

}  // namespace
