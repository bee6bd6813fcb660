// moe_gate_up and moe_down of experts as they are stored: bf16, and MXFP4 that cannot be packed, by
// its shape or its scales. Every (token, expert) pair is a product of a matrix with one vector; all
// scales are exact. For many tokens this is slow: an expert is decoded once for each pair.
//
// MXFP4: a thread owns one block of 32 columns, keeps its 32 values of x in registers and walks
// down ROWS rows of the matrix: 16 bytes and a scale each, consecutive threads consecutive blocks.
// 90 blocks (2880 columns) are three warps, of whose lanes 94 % work.
//
// Loads: GROUP rows ahead, 128 B per thread. Of gate and up of 4 experts (960 blocks of 96 threads,
// 128 registers) 5 blocks are resident on an SM: 61 KB in flight, where 4.3 TB/s at a latency of
// 0.7 µs need 23 KB. Instructions: 4.8 per weight (1.8 to place its bits, 1 to widen, 1 to
// multiply, 1 for the rest); at 128 per clock an SM decodes 27 weights while 35 could arrive. The
// decoding, not memory, is what is left to win: on tensor cores it would need half of that.
//
// A pair's result depends on that pair alone, bit for bit, and the experts of a token are added in
// the order of `indices`. An index that names no expert makes its outputs NaN.
#include "moe.cuh"

namespace {

constexpr int GROUP = 8;
constexpr int ROWS = 3 * GROUP;
constexpr int MAX_WARPS = 16;

struct Rows {
    const uint4 *blocks;    // of the thread's first row and column block
    const uint8_t *scales;  // likewise
    int last;               // row behind which there is none
    int stride;             // blocks per row

    __device__ void load(uint4 &block, uint8_t &scale, int row) const {
        const size_t at = size_t(min(row, last)) * stride;
        block = load_once(blocks + at);
        scale = __ldg(scales + at);
    }
};

// Σ FP4·x over the eight features of a word.
__device__ __forceinline__ void add_word(float (&sum)[2], uint32_t word, const float *x) {
    const float2 a = fp4x2_to_f32<0>(word), b = fp4x2_to_f32<1>(word);
    const float2 c = fp4x2_to_f32<2>(word), d = fp4x2_to_f32<3>(word);
    sum[0] = fmaf(a.x, x[0], sum[0]), sum[1] = fmaf(a.y, x[4], sum[1]);
    sum[0] = fmaf(b.x, x[1], sum[0]), sum[1] = fmaf(b.y, x[5], sum[1]);
    sum[0] = fmaf(c.x, x[2], sum[0]), sum[1] = fmaf(c.y, x[6], sum[1]);
    sum[0] = fmaf(d.x, x[3], sum[0]), sum[1] = fmaf(d.y, x[7], sum[1]);
}

// partial[r] = this warp's part of Σ_i W[first + r, i]·x[i] for ROWS rows, of which those behind
// the last repeat it. `thread` of `threads` share the columns.
__device__ void dot_rows(float *partial, const uint8_t *blocks, const uint8_t *scales,
                         size_t matrix, int first, int rows, int cols, const float *x, int thread,
                         int threads) {
    const int stride = cols / 32, lane = threadIdx.x % 32;
    for (int begin = 0; begin < stride; begin += threads) {
        const int column = begin + thread;
        const bool mine = column < stride;
        const size_t start = (matrix * rows + first) * stride + (mine ? column : 0);
        const Rows row = {reinterpret_cast<const uint4 *>(blocks) + start, scales + start,
                          rows - 1 - first, stride};
        uint4 block[GROUP];
        uint8_t scale[GROUP];
#pragma unroll
        for (int r = 0; r < GROUP; r++) row.load(block[r], scale[r], r);
        float v[32];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float4 f = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (mine) f = __ldg(reinterpret_cast<const float4 *>(x + 32 * column) + i);
            v[4 * i] = f.x, v[4 * i + 1] = f.y, v[4 * i + 2] = f.z, v[4 * i + 3] = f.w;
        }
#pragma unroll 1
        for (int group = 0; group < ROWS; group += GROUP) {
            float sum[GROUP];
#pragma unroll
            for (int r = 0; r < GROUP; r++) {
                float half[2] = {0.0f, 0.0f};
                add_word(half, block[r].x, v);
                add_word(half, block[r].y, v + 8);
                add_word(half, block[r].z, v + 16);
                add_word(half, block[r].w, v + 24);
                // A lane without a column adds zeros, times a scale of the same row.
                sum[r] = (half[0] + half[1]) * FP4_UNIT * e8m0_to_f32(scale[r]);
                if (group + GROUP < ROWS) row.load(block[r], scale[r], group + GROUP + r);
            }
            const float total = warp_sums(sum);
            if (lane % (32 / GROUP) == 0) {
                float &to = partial[group + lane / (32 / GROUP)];
                to = begin == 0 ? total : to + total;
            }
        }
    }
}

}  // namespace

// out[pair, i]: gate is row 2i, up row 2i + 1. Block: a multiple of 32 threads up to 512; grid:
// pairs, rows / ROWS rounded up.
extern "C" __global__ void __launch_bounds__(32 * MAX_WARPS)
    moe_gate_up_mxfp4(float *__restrict__ out, const uint8_t *__restrict__ blocks,
                      const uint8_t *__restrict__ scales, const uint16_t *__restrict__ bias,
                      const float *__restrict__ x, const uint32_t *__restrict__ indices,
                      int experts, int rows, int cols, int k, float alpha, float limit) {
    __shared__ float partial[MAX_WARPS][ROWS];
    const size_t pair = blockIdx.x;
    const int first = blockIdx.y * ROWS, thread = threadIdx.x;
    const uint32_t expert = indices[pair];
    const bool known = expert < uint32_t(experts);
    if (known)
        dot_rows(partial[thread / 32], blocks, scales, expert, first, rows, cols,
                 x + pair / k * cols, thread, blockDim.x);
    __syncthreads();
    if (thread >= ROWS / 2 || first + 2 * thread >= rows) return;
    float h[2] = {quiet_nan(), quiet_nan()};
    for (int i = 0; known && i < 2; i++) {
        h[i] = bf16_to_f32(bias[size_t(expert) * rows + first + 2 * thread + i]);
        for (int warp = 0; warp < int(blockDim.x) / 32; warp++)
            h[i] += partial[warp][2 * thread + i];
    }
    out[pair * (rows / 2) + first / 2 + thread] = clamped_swiglu(h[0], h[1], alpha, limit);
}

// `team` threads, a multiple of 32, share an expert's columns, and a block has as many teams as
// fit. Block: up to 512 threads; grid: tokens, rows / ROWS rounded up.
extern "C" __global__ void __launch_bounds__(32 * MAX_WARPS)
    moe_down_mxfp4(float *__restrict__ out, const uint8_t *__restrict__ blocks,
                   const uint8_t *__restrict__ scales, const uint16_t *__restrict__ bias,
                   const float *__restrict__ a, const uint32_t *__restrict__ indices,
                   const float *__restrict__ weights, int experts, int rows, int cols, int k,
                   int team) {
    __shared__ float partial[MAX_WARPS][ROWS];
    const int first = blockIdx.y * ROWS, thread = threadIdx.x;
    const int teams = blockDim.x / team, warps = team / 32;
    const bool writes = thread < ROWS && first + thread < rows;
    const size_t token = blockIdx.x;
    float sum = 0.0f;
    for (int begin = 0; begin < k; begin += teams) {
        const int j = begin + thread / team;
        const size_t pair = token * k + j;
        if (j < k && indices[pair] < uint32_t(experts))
            dot_rows(partial[thread / 32], blocks, scales, indices[pair], first, rows, cols,
                     a + pair * cols, thread % team, team);
        __syncthreads();
        for (int i = 0; writes && i < min(teams, k - begin); i++) {
            const size_t pair = token * k + begin + i;
            const uint32_t expert = indices[pair];
            float y = quiet_nan();
            if (expert < uint32_t(experts)) {
                y = bf16_to_f32(bias[size_t(expert) * rows + first + thread]);
                for (int warp = 0; warp < warps; warp++) y += partial[i * warps + warp][thread];
            }
            sum += weights[pair] * y;
        }
        __syncthreads();
    }
    if (writes) out[token * rows + first + thread] = sum;
}

// Dequantised experts, [E, cols, rows]: a thread per output, columns one after another. Consecutive
// threads read consecutive weights.
extern "C" __global__ void
moe_gate_up_bf16(float *__restrict__ out, const uint16_t *__restrict__ weight,
                 const uint16_t *__restrict__ bias, const float *__restrict__ x,
                 const uint32_t *__restrict__ indices, uint64_t pairs, int experts, int rows,
                 int cols, int k, float alpha, float limit) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows / 2) return;
    for (uint64_t pair = blockIdx.y; pair < pairs; pair += gridDim.y) {
        const uint32_t expert = indices[pair];
        float gate = quiet_nan(), up = quiet_nan();
        if (expert < uint32_t(experts)) {
            const uint16_t *w = weight + size_t(expert) * rows * cols + 2 * i;
            const float *v = x + pair / k * cols;
            gate = up = 0.0f;
            for (int col = 0; col < cols; col++, w += rows) {
                gate = fmaf(bf16_to_f32(w[0]), v[col], gate);
                up = fmaf(bf16_to_f32(w[1]), v[col], up);
            }
            gate += bf16_to_f32(bias[size_t(expert) * rows + 2 * i]);
            up += bf16_to_f32(bias[size_t(expert) * rows + 2 * i + 1]);
        }
        out[pair * (rows / 2) + i] = clamped_swiglu(gate, up, alpha, limit);
    }
}

extern "C" __global__ void
moe_down_bf16(float *__restrict__ out, const uint16_t *__restrict__ weight,
              const uint16_t *__restrict__ bias, const float *__restrict__ a,
              const uint32_t *__restrict__ indices, const float *__restrict__ weights,
              uint64_t tokens, int experts, int rows, int cols, int k) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    for (uint64_t token = blockIdx.y; token < tokens; token += gridDim.y) {
        float sum = 0.0f;
        for (uint64_t pair = token * k; pair < (token + 1) * k; pair++) {
            const uint32_t expert = indices[pair];
            float y = quiet_nan();
            if (expert < uint32_t(experts)) {
                const uint16_t *w = weight + size_t(expert) * rows * cols + row;
                y = 0.0f;
                for (int col = 0; col < cols; col++, w += rows)
                    y = fmaf(bf16_to_f32(*w), a[pair * cols + col], y);
                y += bf16_to_f32(bias[size_t(expert) * rows + row]);
            }
            sum += weights[pair] * y;
        }
        out[token * rows + row] = sum;
    }
}
