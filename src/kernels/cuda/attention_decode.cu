// Attention for rows that are alone: one block per row, kv head and part of its visible positions
// (split-KV), and a second kernel that puts the parts together.
//
// The bytes: at depth 131,072 in FP8 a layer reads 131,072 · 1,024 bytes, 31 us at 4.3 TB/s, which
// takes 4.3e12 · 0.7 us = 3 MB on the way, 23 KB per multiprocessor of 132. A warp asks for the
// keys and values of 32 positions, 4 KB in FP8 and 8 KB in BF16, before it uses the first; four
// blocks of four warps have 64 KB on the way when none waits for arithmetic. Such a step is some 550
// instructions in FP8 (sm_90a), 140 cycles of the four schedulers, where its bytes take 220.
#include "attention.cuh"

constexpr int DECODE_WARPS = 4;

// Positions of a part of a row that sees `first` to `position`: the least number of spans that leaves it
// with `most` parts at most. It depends on the row alone, and so do the row's bits.
__device__ __forceinline__ unsigned part_of_row(unsigned first, unsigned position, unsigned span,
                                                unsigned most) {
    return span * unsigned((position - first) / (uint64_t(span) * most) + 1);
}

// `out` is [rows, Q, D] itself when one part is all, else the parts: per row of `rows`, head and
// part the largest score, the sum of the weights and D weighted sums.
template <int FORMAT, int DIM, bool EXACT, int TILES>
__device__ __forceinline__ void decode(float *out, const float *q, const uint8_t *pages,
                                       const float *sinks, const uint32_t *rows,
                                       const AttentionRows &view, int q_heads, int kv_heads,
                                       int head_dim, float k_factor, float v_scale,
                                       unsigned least, unsigned most) {
    constexpr int BYTES = element_bytes(FORMAT);
    constexpr int STEP = 8 * TILES;  // positions; a step lies in one page
    // Runs of a lane: 16 bytes of a key; 8 values, or 4 where those would be more than 16 bytes.
    constexpr int K_RUN = 16 / BYTES, V_RUN = FORMAT == KV_F32 ? 4 : 8;
    const int dim = EXACT ? DIM : head_dim;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int group = q_heads / kv_heads;
    const int kv_head = blockIdx.y % kv_heads, group_first = blockIdx.y / kv_heads * 8;
    const size_t row = rows[2 * blockIdx.z];
    const unsigned position = view.position(row), sequence = view.sequences[row];
    const unsigned first = view.first_seen(position);
    const unsigned span = part_of_row(first, position, least, most);
    // Parts begin at multiples of 32 positions, so that their steps do.
    const unsigned begin = first / 32 * 32 + blockIdx.x * span;
    if (begin > position) return;
    const unsigned end = ::min(begin + span, position + 1);

    const int head = kv_head * group + group_first + g;
    const bool used = group_first + g < group;
    Queries<DIM> x[1];
    x[0].template start<typename Stored<FORMAT>::Number, K_RUN>(
        used ? q + (row * q_heads + head) * dim : nullptr, dim, k_factor, first, end);

    const int row_bytes = dim * BYTES;
    unsigned base = begin + warp * STEP;
    unsigned page = base < end ? view.page(sequence, base) : 0;
    while (base < end) {
        const bool missing = page >= view.page_count;
        uint32_t k[TILES][DIM * BYTES / 16], v[2 * TILES][DIM * BYTES / 32];
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            const unsigned at = base + tile_position(j, g);
            const bool visible = at >= first && at < end && !missing;
            const uint8_t *from =
                pages
                + row_start(missing ? 0 : page, 0, kv_head, at % PAGE_TOKENS, kv_heads, row_bytes);
#pragma unroll
            for (int i = 0; i < DIM * BYTES / 64; i++) {
                const int d = (4 * i + t) * K_RUN;
                uint4 run = make_uint4(0, 0, 0, 0);
                if (visible && (EXACT || d < dim)) run = *(const uint4 *)(from + d * BYTES);
                k[j][4 * i] = run.x, k[j][4 * i + 1] = run.y, k[j][4 * i + 2] = run.z,
                         k[j][4 * i + 3] = run.w;
            }
        }
#pragma unroll
        for (int r = 0; r < 2 * TILES; r++) {
            const unsigned at = base + 16 * (r / 4) + 4 * t + r % 4;
            const bool visible = at >= first && at < end && !missing;
            const uint8_t *from =
                pages
                + row_start(missing ? 0 : page, 1, kv_head, at % PAGE_TOKENS, kv_heads, row_bytes);
#pragma unroll
            for (int i = 0; i < DIM / 8 / V_RUN; i++) {
                const int d = (8 * i + g) * V_RUN;
                const bool read = visible && (EXACT || d < dim);
                if constexpr (FORMAT == KV_FP8) {
                    uint2 run = make_uint2(0, 0);
                    if (read) run = *(const uint2 *)(from + d * BYTES);
                    v[r][2 * i] = run.x, v[r][2 * i + 1] = run.y;
                } else {
                    uint4 run = make_uint4(0, 0, 0, 0);
                    if (read) run = *(const uint4 *)(from + d * BYTES);
                    v[r][4 * i] = run.x, v[r][4 * i + 1] = run.y, v[r][4 * i + 2] = run.z,
                             v[r][4 * i + 3] = run.w;
                }
            }
        }
        const unsigned next = base + DECODE_WARPS * STEP;
        page = next < end ? view.page(sequence, next) : 0;
        attend<FORMAT, DIM, TILES>(
            x, base, missing,
            [&](int j, int step, int part) { return quad<FORMAT>(&k[j][step * BYTES], part); },
            [&](int nt, int step, int part) {
                const int word = nt / 4 * BYTES;
                return make_uint2(
                    pair<FORMAT>(&v[4 * step][word], &v[4 * step + 1][word], nt % 4, part),
                    pair<FORMAT>(&v[4 * step + 2][word], &v[4 * step + 3][word], nt % 4, part));
            });
        base = next;
    }

    // The warps' vectors come together.
    __shared__ float maxima[DECODE_WARPS][8], sums[DECODE_WARPS][8], acc[DECODE_WARPS][8][DIM];
    float sum = x[0].sum;
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (t == 0) maxima[warp][g] = x[0].max, sums[warp][g] = sum;
#pragma unroll
    for (int i = 0; i < DIM / 4; i++)
        acc[warp][g][value_dim<V_RUN>(i / 2, 2 * t + i % 2)] = x[0].weighted(i / 2, i % 2);
    __syncthreads();
    for (int i = threadIdx.x; i < 8 * dim; i += 32 * DECODE_WARPS) {
        const int n = i / dim, d = i % dim;
        if (group_first + n >= group) break;
        const int head = kv_head * group + group_first + n;
        float max = -INFINITY;
        for (int w = 0; w < DECODE_WARPS; w++) max = fmaxf(max, maxima[w][n]);
        float sum = 0, value = 0;
        for (int w = 0; w < DECODE_WARPS; w++) {
            const float weight = exp2f(maxima[w][n] - max);
            sum += sums[w][n] * weight;
            value += acc[w][n][d] * weight;
        }
        value *= v_scale / WEIGHT_UNIT;
        if (gridDim.x == 1) {
            // As attention_combine does with one part, bit for bit: no fused operation, no -0.
            const float sink = sinks[head] * LOG2_E, all = fmaxf(max, sink),
                        weight = exp2f(max - all);
            value = __fadd_rn(__fmul_rn(value, weight), 0.0f);
            sum = __fadd_rn(exp2f(sink - all), __fmul_rn(sum, weight));
            // Some of the positions, because the caller said there were fewer, are no answer.
            out[(row * q_heads + head) * dim + d] = end == position + 1 ? value / sum : NAN;
        } else {
            float *part =
                out + ((size_t(blockIdx.z) * q_heads + head) * gridDim.x + blockIdx.x) * (dim + 2);
            part[2 + d] = value;
            if (d == 0) part[0] = max, part[1] = sum;
        }
    }
}

#define DECODE(name, FORMAT, DIM, EXACT, TILES)                                                  \
    extern "C" __global__ void __launch_bounds__(32 * DECODE_WARPS) name(                        \
        float *__restrict__ out, const float *__restrict__ q, const uint8_t *__restrict__ pages, \
        const float *__restrict__ sinks, const uint32_t *__restrict__ rows,                      \
        const uint32_t *__restrict__ positions, const uint32_t *__restrict__ sequences,          \
        const uint32_t *__restrict__ page_tables, int sequence_count, int table_stride,          \
        uint32_t window, uint32_t page_count, int q_heads, int kv_heads, int head_dim,           \
        float k_factor, float v_scale, uint32_t span, uint32_t most) {                           \
        const AttentionRows view = {                                                             \
            positions, sequences, page_tables, unsigned(sequence_count), unsigned(table_stride), \
            window,    page_count};                                                              \
        decode<FORMAT, DIM, EXACT, TILES>(out, q, pages, sinks, rows, view, q_heads, kv_heads,   \
                                          head_dim, k_factor, v_scale, span, most);              \
    }

// The family's head_dim, and any other multiple of 16 up to 128.
DECODE(attention_decode_f32_64, KV_F32, 64, true, 2)
DECODE(attention_decode_bf16_64, KV_BF16, 64, true, 4)
DECODE(attention_decode_fp8_64, KV_FP8, 64, true, 4)
DECODE(attention_decode_f32, KV_F32, 128, false, 2)
DECODE(attention_decode_bf16, KV_BF16, 128, false, 2)
DECODE(attention_decode_fp8, KV_FP8, 128, false, 2)

// Puts the parts of row rows[blockIdx.y] and head blockIdx.x together, with the head's sink, which
// counts once. Parts are added in a fixed order.
extern "C" __global__ void __launch_bounds__(256)
    attention_combine(float *__restrict__ out, const float *__restrict__ parts,
                      const float *__restrict__ sinks, const uint32_t *__restrict__ rows,
                      const uint32_t *__restrict__ positions, int table_stride, uint32_t window,
                      uint32_t least, uint32_t most, int splits, int q_heads, int head_dim) {
    __shared__ float reduced[256];
    const int head = blockIdx.x, i = threadIdx.x;
    const size_t row = rows[2 * blockIdx.y];
    const AttentionRows view = {positions, nullptr, nullptr, 0, unsigned(table_stride), window, 0};
    const unsigned position = view.position(row), first = view.first_seen(position);
    const unsigned begin = first / 32 * 32, span = part_of_row(first, position, least, most);
    const unsigned count = (position - begin) / span + 1;
    float *to = out + (row * q_heads + head) * head_dim;
    if (count > unsigned(splits)) {
        // More positions than the caller said: an answer from some of them would look like one.
        for (int d = i; d < head_dim; d += 256) to[d] = NAN;
        return;
    }
    const float *part = parts + (size_t(blockIdx.y) * q_heads + head) * splits * (head_dim + 2);
    float max = sinks[head] * LOG2_E;
    for (unsigned s = i; s < count; s += 256) max = fmaxf(max, part[size_t(s) * (head_dim + 2)]);
    reduced[i] = max;
    __syncthreads();
    for (int n = 128; n > 0; n /= 2) {
        if (i < n) reduced[i] = fmaxf(reduced[i], reduced[i + n]);
        __syncthreads();
    }
    max = reduced[0];
    __syncthreads();
    // Threads of one dimension take every other part, or every fourth.
    const int width = head_dim <= 64 ? 64 : 128, d = i % width, slice = i / width,
              slices = 256 / width;
    __shared__ float sums[256];
    float value = 0, sum = 0;
    for (unsigned s = slice; s < count; s += slices) {
        const float *from = part + size_t(s) * (head_dim + 2);
        const float weight = exp2f(from[0] - max);
        sum = __fadd_rn(sum, __fmul_rn(from[1], weight));
        if (d < head_dim) value = __fadd_rn(value, __fmul_rn(from[2 + d], weight));
    }
    reduced[i] = value, sums[i] = sum;
    __syncthreads();
    if (slice == 0 && d < head_dim) {
        sum = exp2f(sinks[head] * LOG2_E - max), value = 0;
        for (int n = 0; n < slices; n++)
            value += reduced[n * width + d], sum += sums[n * width + d];
        to[d] = value / sum;
    }
}
