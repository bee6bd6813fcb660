// Attention for runs of rows of one sequence (flash-style): a block takes up to 16 rows and one kv
// head.
//
// The keys and values of a tile of positions are converted once, into shared memory, where all rows
// and query heads use them: 128 query vectors of eight query heads a kv head, 16 per warp.
//
// Both products want a lane's four neighbours of a row as one load of 8 bytes, 16 lanes at a time
// from different banks: keys lie as [position, dim], values as [dim, position], and the units of 8
// bytes of a row are permuted by a number that depends on the row.
#include "attention.cuh"

constexpr int PREFILL_WARPS = 8;
constexpr int PREFILL_THREADS = 32 * PREFILL_WARPS;

// A lane reads rows g with these bits different, see tile_position.
__device__ __forceinline__ int key_unit(int position, int unit) {
    return unit ^ ((position & 1) << 2 | (position & 4) << 1);
}
// Written by lanes of neighbouring quads of dimensions, read by those of neighbouring dimensions.
template <int UNITS> __device__ __forceinline__ int value_unit(int dim, int unit) {
    return unit ^ ((dim / 4 ^ dim % 4 << 2) & (UNITS - 1));
}

// Four neighbours of a row as stored; zeros where nothing is read.
template <int FORMAT>
__device__ __forceinline__ void load_group(uint32_t (&group)[4], const uint8_t *from, bool read) {
    for (int i = 0; i < 4; i++) group[i] = 0;
    if (!read) return;
    if constexpr (FORMAT == KV_FP8) {
        group[0] = *(const uint32_t *)from;
    } else if constexpr (FORMAT == KV_BF16) {
        const uint2 words = *(const uint2 *)from;
        group[0] = words.x, group[1] = words.y;
    } else {
        const uint4 words = *(const uint4 *)from;
        group[0] = words.x, group[1] = words.y, group[2] = words.z, group[3] = words.w;
    }
}

template <int FORMAT, int DIM, bool EXACT, int N>
__device__ __forceinline__ void prefill(float *out, const float *q, const uint8_t *pages,
                                        const float *sinks, const uint32_t *blocks,
                                        const AttentionRows &view, int q_heads, int kv_heads,
                                        int head_dim, float k_factor, float v_scale) {
    constexpr int BYTES = element_bytes(FORMAT);
    constexpr int PARTS = Stored<FORMAT>::PARTS;
    constexpr int TILE = 4096 / DIM;  // positions: all of a page, or half of one
    constexpr int K_UNITS = DIM / 4, V_UNITS = TILE / 4;
    __shared__ uint2 keys[PARTS][TILE][K_UNITS], values[PARTS][DIM][V_UNITS];
    const int dim = EXACT ? DIM : head_dim;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int group = q_heads / kv_heads, kv_head = blockIdx.y;
    const size_t start = blocks[2 * blockIdx.x];
    const int count = blocks[2 * blockIdx.x + 1];
    const int vector_first = blockIdx.z * (8 * N * PREFILL_WARPS);
    if (vector_first >= count * group) return;

    unsigned lowest = UINT32_MAX, highest = 0;
    for (int i = 0; i < count; i++) {
        const unsigned position = view.position(start + i);
        lowest = ::min(lowest, view.first_seen(position));
        highest = ::max(highest, position + 1);
    }
    Queries<DIM> x[N];
    float *to[N];
    float sink[N];
#pragma unroll
    for (int n = 0; n < N; n++) {
        const int vector = vector_first + (warp * N + n) * 8 + g;
        const bool used = vector < count * group;
        const size_t row = start + (used ? vector / group : 0);
        const int head = kv_head * group + vector % group;
        const unsigned position = view.position(row);
        const size_t at = (row * q_heads + head) * dim;
        x[n].template start<typename Stored<FORMAT>::Number, 4>(
            used ? q + at : nullptr, dim, k_factor, view.first_seen(position), position + 1);
        to[n] = used ? out + at : nullptr;
        sink[n] = used ? sinks[head] * LOG2_E : 0;
    }

    const unsigned sequence = view.sequences[start];
    const int row_bytes = dim * BYTES;
    for (unsigned base = lowest / TILE * TILE; base < highest; base += TILE) {
        const unsigned page = view.page(sequence, base);
        const bool missing = page >= view.page_count;
        __syncthreads();  // all have used the last tile
        for (int i = threadIdx.x; i < TILE * K_UNITS; i += PREFILL_THREADS) {
            const int p = i / K_UNITS, unit = i % K_UNITS;
            const bool read =
                base + p >= lowest && base + p < highest && !missing && (EXACT || 4 * unit < dim);
            const uint8_t *from = pages
                                  + row_start(missing ? 0 : page, 0, kv_head,
                                              (base + p) % PAGE_TOKENS, kv_heads, row_bytes);
            uint32_t words[4];
            load_group<FORMAT>(words, from + 4 * unit * BYTES, read);
#pragma unroll
            for (int part = 0; part < PARTS; part++)
                keys[part][p][key_unit(p, unit)] = quad<FORMAT>(words, part);
        }
        for (int i = threadIdx.x; i < V_UNITS * DIM / 4; i += PREFILL_THREADS) {
            const int unit = i / (DIM / 4), d = i % (DIM / 4) * 4;
            uint32_t words[4][4];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const unsigned at = base + 4 * unit + r;
                const bool read = at >= lowest && at < highest && !missing && (EXACT || d < dim);
                const uint8_t *from = pages
                                      + row_start(missing ? 0 : page, 1, kv_head, at % PAGE_TOKENS,
                                                  kv_heads, row_bytes);
                load_group<FORMAT>(words[r], from + d * BYTES, read);
            }
#pragma unroll
            for (int e = 0; e < 4; e++)
#pragma unroll
                for (int part = 0; part < PARTS; part++)
                    values[part][d + e][value_unit<V_UNITS>(d + e, unit)] =
                        make_uint2(pair<FORMAT>(words[0], words[1], e, part),
                                   pair<FORMAT>(words[2], words[3], e, part));
        }
        __syncthreads();
        attend<FORMAT, DIM, TILE / 8>(
            x, base, missing,
            [&](int j, int step, int part) {
                const int p = tile_position(j, g);
                return keys[part][p][key_unit(p, 4 * step + t)];
            },
            [&](int nt, int step, int part) {
                return values[part][8 * nt + g][value_unit<V_UNITS>(8 * nt + g, 4 * step + t)];
            });
    }

#pragma unroll
    for (int n = 0; n < N; n++) {
        float sum = x[n].sum;
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const float max = fmaxf(x[n].max, sink[n]), weight = exp2f(x[n].max - max);
        const float factor =
            weight / (sum * weight + exp2f(sink[n] - max)) * (v_scale / WEIGHT_UNIT);
        if (!to[n]) continue;
#pragma unroll
        for (int i = 0; i < DIM / 4; i++) {
            const int d = value_dim<1>(i / 2, 2 * t + i % 2);
            if (EXACT || d < dim) to[n][d] = x[n].weighted(i / 2, i % 2) * factor;
        }
    }
}

#define PREFILL(name, FORMAT, DIM, EXACT, N)                                                     \
    extern "C" __global__ void __launch_bounds__(PREFILL_THREADS)                                \
        name(float *__restrict__ out, const float *__restrict__ q,                               \
             const uint8_t *__restrict__ pages, const float *__restrict__ sinks,                 \
             const uint32_t *__restrict__ blocks, const uint32_t *__restrict__ positions,        \
             const uint32_t *__restrict__ sequences, const uint32_t *__restrict__ page_tables,   \
             int sequence_count, int table_stride, uint32_t window, uint32_t page_count,         \
             int q_heads, int kv_heads, int head_dim, float k_factor, float v_scale) {           \
        const AttentionRows view = {                                                             \
            positions, sequences, page_tables, unsigned(sequence_count), unsigned(table_stride), \
            window,    page_count};                                                              \
        prefill<FORMAT, DIM, EXACT, N>(out, q, pages, sinks, blocks, view, q_heads, kv_heads,    \
                                       head_dim, k_factor, v_scale);                             \
    }

PREFILL(attention_prefill_f32_64, KV_F32, 64, true, 2)
PREFILL(attention_prefill_bf16_64, KV_BF16, 64, true, 2)
PREFILL(attention_prefill_fp8_64, KV_FP8, 64, true, 2)
PREFILL(attention_prefill_f32, KV_F32, 128, false, 1)
PREFILL(attention_prefill_bf16, KV_BF16, 128, false, 1)
PREFILL(attention_prefill_fp8, KV_FP8, 128, false, 1)
