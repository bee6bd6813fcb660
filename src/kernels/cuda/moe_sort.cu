// What surrounds the products of moe_grouped.cu: (token, expert) pairs sorted by expert on the
// device, and the weighted sum of a token's experts.
#include "tile.cuh"

namespace {

constexpr int SORT_THREADS = 512;

}  // namespace

// Expert e's pairs, in their order, are order[offsets[e]] .. order[offsets[e + 1] − 1]. Indices
// that name no expert count as one more, number E. Grid: E + 1. A block counts what comes before
// its expert, so no block waits for another.
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

// tiles[i] = (expert, first place in `order`, pairs, 0), at most TILE_ROWS pairs each; the rest
// of `count` tiles has no pairs. One warp.
extern "C" __global__ void moe_tiles(uint4 *__restrict__ tiles,
                                     const uint32_t *__restrict__ offsets, uint32_t experts,
                                     uint32_t count) {
    const uint32_t lane = threadIdx.x;
    uint32_t next = 0;
    for (uint32_t begin = 0; begin < experts; begin += 32) {
        const uint32_t expert = begin + lane;
        const uint32_t first = expert < experts ? offsets[expert] : 0;
        const uint32_t pairs = expert < experts ? offsets[expert + 1] - first : 0;
        const uint32_t mine = (pairs + TILE_ROWS - 1) / TILE_ROWS;
        uint32_t up_to = mine;  // tiles of this lane and the lower ones
        for (uint32_t by = 1; by < 32; by *= 2) {
            const uint32_t lower = __shfl_up_sync(ALL_LANES, up_to, by);
            up_to += lane >= by ? lower : 0;
        }
        for (uint32_t i = 0; i < mine; i++)
            tiles[next + up_to - mine + i] =
                make_uint4(expert, first + i * TILE_ROWS,
                           min(pairs - i * TILE_ROWS, uint32_t(TILE_ROWS)), 0);
        next += __shfl_sync(ALL_LANES, up_to, 31);
    }
    for (uint32_t i = next + lane; i < count; i += 32) tiles[i] = make_uint4(0, 0, 0, 0);
}

// out[t,:] = Σ_j weights[t,j] · y[t·k + j,:], j in order.
extern "C" __global__ void moe_combine(float *__restrict__ out, const float *__restrict__ y,
                                       const float *__restrict__ weights, int rows, int k,
                                       uint64_t n) {
    for (uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; i < n;
         i += uint64_t(gridDim.x) * blockDim.x) {
        const uint64_t first = i / rows * k;
        float sum = 0.0f;
        for (int j = 0; j < k; j++) sum += weights[first + j] * y[(first + j) * rows + i % rows];
        out[i] = sum;
    }
}
