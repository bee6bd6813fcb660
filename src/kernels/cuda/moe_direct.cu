// Packed experts for one or two tokens: every (token, expert) pair by itself, f32 in and out,
// weights straight from memory to registers.
//
// One token's gate and up are 35 MB, 8 µs at 4.3 TB/s; the ring of moe_few.cu takes 4 to 5 µs to
// fill and empty, and the sorting, gathering and combining around it as much again. Here a block of
// a warp for every slab asks at once for all it needs, two tiles: 49 KB for 2,880 columns, 108
// bytes a lane, and the registers (64) allow two blocks: 98 KB in flight on a multiprocessor, where
// 33 KB cover a latency of 1 µs. Of gate and up of 4 experts there are 720 such blocks. Of down a
// block has one tile of each of a token's experts, two at a time, so that it can add them: 180
// blocks, all resident.
//
// What is multiplied and added, and in which order, is slab.cuh's, as in moe_few.cu. All eight
// columns of an mma are the one pair.
//
// An index that names no expert makes its outputs NaN. Any number of pairs is right, if slow: an
// expert is read once for each. A projection whose neighbour is not packed comes here.
#include "slab.cuh"

namespace {

constexpr int MOST_SLABS = 15;
constexpr int MOST_THREADS = 32 * MOST_SLABS;
constexpr int TILES = 2;  // that a block has in flight

template <int PARTS> struct Shared {
    uint4 columns[MOST_SLABS][PARTS][SLAB_64 * 2][4];  // each warp's own
    float4 sums[TILES][MOST_SLABS][32];
};

// This warp's slab of tile number `tile` of all experts'.
__device__ __forceinline__ void load_weights(SlabWeights &a, const uint8_t *packed, size_t tile,
                                             int slabs) {
    const int slab = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint8_t *from = packed + (tile * slabs + slab) * SLAB_BYTES;
#pragma unroll
    for (int j = 0; j < SLAB_64; j++) {
        a.words[j] = load_once(reinterpret_cast<const uint4 *>(from) + j * 32 + lane);
        const uint32_t *scales = reinterpret_cast<const uint32_t *>(from + SLAB_WEIGHTS);
        a.scales[j] = __ldg(scales + j * 8 + lane / 4);
    }
}

// This warp's slab of a row of activations, see slab_product: two tiles' registers are too many to
// hold it there as well.
template <int PARTS> struct Columns {
    const uint4 (&of)[PARTS][SLAB_64 * 2][4];

    __device__ uint4 operator()(int j, int w, int part) const {
        return of[part][2 * j + w][threadIdx.x % 4];
    }
};

// The lanes take the row apart together.
template <int PARTS>
__device__ __forceinline__ Columns<PARTS> load_columns(Shared<PARTS> &s, const float *row,
                                                       int cols) {
    const int slab = threadIdx.x / 32, lane = threadIdx.x % 32;
    __syncwarp();  // nobody reads the columns before
    // Features 2 · lane and the next of 64: word `lane / 16`, register `lane / 4 % 4`.
    float2 v[SLAB_64];
#pragma unroll
    for (int j = 0; j < SLAB_64; j++) {
        const int column = slab * SLAB_COLUMNS + 64 * j + 2 * lane;
        v[j] = make_float2(0.0f, 0.0f);
        if (column < cols) v[j] = __ldcg(reinterpret_cast<const float2 *>(row + column));
    }
#pragma unroll
    for (int j = 0; j < SLAB_64; j++) {
        uint32_t hi, lo;
        split_bf16x2(hi, lo, v[j].x, v[j].y);
        const auto of = [&](int part) {
            uint4 *word = &s.columns[slab][part][2 * j + lane / 16][lane % 4];
            return reinterpret_cast<uint32_t *>(word) + lane / 4 % 4;
        };
        *of(0) = hi;
        if (PARTS == 2) *of(PARTS - 1) = lo;
    }
    __syncwarp();
    return {s.columns[slab]};
}

// The slabs' sums of a tile, by one warp.
template <int PARTS>
__device__ __forceinline__ float4 add_slabs(const Shared<PARTS> &s, int tile, int slabs) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 5
    for (int slab = 0; slab < slabs; slab++) add(sum, s.sums[tile][slab][threadIdx.x % 32]);
    return sum;
}

template <int PARTS>
__device__ __forceinline__ void gate_up_direct(float *out, const uint8_t *packed,
                                               const uint16_t *bias, const float *x,
                                               const uint32_t *indices, uint32_t experts, int rows,
                                               int cols, int slabs, int k, float alpha,
                                               float limit) {
    __shared__ Shared<PARTS> s;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4;
    const int tiles = rows / TILE_ROWS_PACKED, first = blockIdx.y * TILES;
    const size_t pair = blockIdx.x;
    const uint32_t expert = indices[pair];
    if (expert >= experts) {
        const int each = TILE_ROWS_PACKED / 2, i = first * each + lane;
        if (warp == 0 && lane < TILES * each && i < rows / 2)
            out[pair * (rows / 2) + i] = quiet_nan();
        return;
    }
    SlabWeights a[TILES];
#pragma unroll
    for (int t = 0; t < TILES; t++)
        load_weights(a[t], packed, size_t(expert) * tiles + min(first + t, tiles - 1), slabs);
    const Columns<PARTS> columns = load_columns(s, x + pair / k * cols, cols);
#pragma unroll
    for (int t = 0; t < TILES; t++) s.sums[t][warp][lane] = slab_product<PARTS>(a[t], columns);
    __syncthreads();
    // As many warps as there are, which may be one.
    for (int t = warp; t < TILES && first + t < tiles; t += slabs) {
        const int row = (first + t) * TILE_ROWS_PACKED + gate_row(g);
        const uint16_t *b = bias + size_t(expert) * rows + row;
        const float2 of_rows = make_float2(bf16_to_f32(b[0]), bf16_to_f32(b[1]));
        const float2 both = gate_up(add_slabs(s, t, slabs), of_rows, alpha, limit);
        if (lane % 4 == 0) out[pair * (rows / 2) + row / 2] = both.x;
    }
}

template <int PARTS>
__device__ __forceinline__ void down_direct(float *out, const uint8_t *packed, const uint16_t *bias,
                                            const float *x, const uint32_t *indices,
                                            const float *weights, uint32_t experts, int rows,
                                            int cols, int slabs, int k) {
    __shared__ Shared<PARTS> s;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4;
    const int tiles = rows / TILE_ROWS_PACKED, tile = blockIdx.y, row = tile * TILE_ROWS_PACKED + g;
    const size_t token = blockIdx.x;
    float upper = 0.0f, lower = 0.0f;  // rows g and g + 8, in the first warp
    for (int begin = 0; begin < k; begin += TILES) {
        uint32_t expert[TILES];
        SlabWeights a[TILES];
#pragma unroll
        for (int t = 0; t < TILES; t++)
            expert[t] = begin + t < k ? indices[token * k + begin + t] : experts;
#pragma unroll
        for (int t = 0; t < TILES; t++)
            if (expert[t] < experts)
                load_weights(a[t], packed, size_t(expert[t]) * tiles + tile, slabs);
        __syncthreads();  // nobody adds the sums before
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            if (expert[t] >= experts) continue;
            const Columns<PARTS> columns =
                load_columns(s, x + (token * k + begin + t) * cols, cols);
            s.sums[t][warp][lane] = slab_product<PARTS>(a[t], columns);
        }
        __syncthreads();
        for (int t = 0; t < TILES && begin + t < k; t++) {
            float y[2] = {quiet_nan(), quiet_nan()};
            if (warp == 0 && expert[t] < experts) {
                const float4 sum = add_slabs(s, t, slabs);
                const uint16_t *b = bias + size_t(expert[t]) * rows + row;
                y[0] = sum.x + bf16_to_f32(b[0]), y[1] = sum.z + bf16_to_f32(b[8]);
            }
            const float weight = weights[token * k + begin + t];
            upper = fmaf(weight, y[0], upper), lower = fmaf(weight, y[1], lower);
        }
    }
    if (threadIdx.x < 32 && lane % 4 == 0) {
        out[token * rows + row] = upper;
        out[token * rows + row + 8] = lower;
    }
}

}  // namespace

// out[pair, i] of x[pair / k]. Block: a warp for each slab; grid: pairs, tiles / TILES rounded up.
#define GATE_UP(name, PARTS)                                                                       \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS, 2)                                  \
        name(float *__restrict__ out, const uint8_t *__restrict__ packed,                          \
             const uint16_t *__restrict__ bias, const float *__restrict__ x,                       \
             const uint32_t *__restrict__ indices, uint32_t experts, int rows, int cols,           \
             int slabs, int k, float alpha, float limit) {                                         \
        gate_up_direct<PARTS>(out, packed, bias, x, indices, experts, rows, cols, slabs, k, alpha, \
                              limit);                                                              \
    }

// out[token, row], the experts of a token in their order. Block: a warp for each slab; grid:
// tokens, tiles.
#define DOWN(name, PARTS)                                                                          \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS, 2)                                  \
        name(float *__restrict__ out, const uint8_t *__restrict__ packed,                          \
             const uint16_t *__restrict__ bias, const float *__restrict__ x,                       \
             const uint32_t *__restrict__ indices, const float *__restrict__ weights,              \
             uint32_t experts, int rows, int cols, int slabs, int k) {                             \
        down_direct<PARTS>(out, packed, bias, x, indices, weights, experts, rows, cols, slabs, k); \
    }

GATE_UP(moe_gate_up_direct_exact, 2)
GATE_UP(moe_gate_up_direct_bf16, 1)
DOWN(moe_down_direct_exact, 2)
DOWN(moe_down_direct_bf16, 1)
