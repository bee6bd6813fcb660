// What surrounds the products of packed experts: (token, expert) pairs sorted by expert on the
// device, in chunks by size, their activations in slots, and the weighted sum of a token's experts.
//
// Everything is in one order: pairs of an expert by their number, chunks by expert. Indices that
// name no expert get no slot.
#include "slots.cuh"

namespace {

constexpr int ROUTE_THREADS = 512;
constexpr int ROUTE_WARPS = ROUTE_THREADS / 32;
constexpr int MOST_CLASSES = 5;

// `limits` has a class's limit of pairs in each byte, in units of 8 and ascending.
__device__ __forceinline__ uint32_t limit_of(uint64_t limits, int class_) {
    return uint32_t(limits >> 8 * class_ & 0xff) * 8;
}

// The first class that takes so many.
__device__ __forceinline__ int class_of(uint64_t limits, uint32_t count) {
    int class_ = 0;
    while (limit_of(limits, class_) < count) class_++;
    return class_;
}

}  // namespace

// order[slot] = pair or NO_PAIR; chunks[class · capacity + i] for i < counts[class]. An expert's
// pairs are shared out evenly: 130 with a limit of 128 are 72 and 58. One block, up to
// ROUTE_THREADS experts: a warp counts and places pairs that follow each other, a thread has an
// expert in between.
extern "C" __global__ void __launch_bounds__(ROUTE_THREADS)
    moe_route(uint32_t *__restrict__ order, Chunk *__restrict__ chunks,
              uint32_t *__restrict__ counts, const uint32_t *__restrict__ indices, uint32_t pairs,
              uint32_t experts, uint32_t slots, uint32_t capacity, int classes, uint64_t limits) {
    // Of a warp's pairs of an expert the number; then the slot of the next of them.
    __shared__ uint32_t places[ROUTE_WARPS][ROUTE_THREADS];
    __shared__ uint32_t of_warp[ROUTE_WARPS][1 + MOST_CLASSES];
    const uint32_t thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
#pragma unroll
    for (int w = 0; w < ROUTE_WARPS; w++) places[w][thread] = 0;
    __syncthreads();
    const uint32_t share = (pairs + ROUTE_THREADS - 1) / ROUTE_THREADS * 32;
    const uint32_t begin = warp * share, end = min(begin + share, pairs);
    for (uint32_t pair = begin + lane; pair < end; pair += 32) {
        const uint32_t expert = indices[pair];
        if (expert < experts) atomicAdd(&places[warp][expert], 1u);
    }
    __syncthreads();

    uint32_t count = 0;
#pragma unroll
    for (int w = 0; w < ROUTE_WARPS; w++) {
        const uint32_t mine = places[w][thread];
        places[w][thread] = count;
        count += mine;
    }
    const uint32_t most = limit_of(limits, classes - 1), padded = (count + 7) / 8 * 8;
    uint32_t each = 8, whole = 0, rest = 0;
    if (count > 0) {
        const uint32_t parts = (count + most - 1) / most;
        each = ((count + parts - 1) / parts + 7) / 8 * 8;  // at most `most`, a multiple of 8
        whole = count / each, rest = count % each;
    }
    const int of_whole = class_of(limits, each), of_rest = class_of(limits, rest);
    // Slots, and chunks of each class: of the experts up to this one, then of those before.
    uint32_t mine[1 + MOST_CLASSES], before[1 + MOST_CLASSES];
#pragma unroll
    for (int i = 0; i <= MOST_CLASSES; i++) {
        mine[i] = (of_whole == i - 1 ? whole : 0) + (of_rest == i - 1 && rest > 0);
        if (i == 0) mine[i] = padded;
        before[i] = mine[i];
#pragma unroll
        for (uint32_t by = 1; by < 32; by *= 2) {
            const uint32_t lower = __shfl_up_sync(ALL_LANES, before[i], by);
            before[i] += lane >= by ? lower : 0;
        }
        if (lane == 31) of_warp[warp][i] = before[i];
        before[i] -= mine[i];
    }
    __syncthreads();
    uint32_t used = 0;
#pragma unroll
    for (int w = 0; w < ROUTE_WARPS; w++) {
#pragma unroll
        for (int i = 0; i <= MOST_CLASSES; i++) before[i] += w < int(warp) ? of_warp[w][i] : 0;
        used += of_warp[w][0];
    }
    if (thread < uint32_t(classes)) {
        uint32_t all = 0;
        for (int w = 0; w < ROUTE_WARPS; w++) all += of_warp[w][1 + thread];
        counts[thread] = all;
    }
#pragma unroll
    for (int w = 0; w < ROUTE_WARPS; w++) places[w][thread] += before[0];
    for (uint32_t i = count; i < padded; i++) order[before[0] + i] = NO_PAIR;
    for (uint32_t slot = used + thread; slot < slots; slot += ROUTE_THREADS) order[slot] = NO_PAIR;
#pragma unroll
    for (int i = 0; i < MOST_CLASSES; i++) {
        Chunk *to = chunks + size_t(i) * capacity + before[1 + i];
        if (i == of_whole)
            for (uint32_t j = 0; j < whole; j++) *to++ = {thread, before[0] + j * each, each, 0};
        if (i == of_rest && rest > 0) *to = {thread, before[0] + whole * each, rest, 0};
    }
    __syncthreads();

    for (uint32_t first = begin; first < end; first += 32) {
        const uint32_t pair = first + lane, expert = pair < end ? indices[pair] : NO_PAIR;
        const bool known = expert < experts;
        const uint32_t same = __match_any_sync(ALL_LANES, expert);
        const uint32_t lower = same & ((1u << lane) - 1);
        if (known) order[places[warp][expert] + __popc(lower)] = pair;
        __syncwarp();
        if (known && lower == 0) places[warp][expert] += __popc(same);
        __syncwarp();
    }
}

// x into slots, as `parts` bf16 each; `divisor`: pairs per row of x. A thread per 8 columns of a
// slot. Grid: slots · slabs · 24 / THREADS rounded up.
extern "C" __global__ void __launch_bounds__(THREADS)
    moe_slots(uint4 *__restrict__ to, const float *__restrict__ x,
              const uint32_t *__restrict__ order, uint32_t slots, int slabs, int cols,
              uint32_t divisor, int parts) {
    const size_t i = blockIdx.x * size_t(THREADS) + threadIdx.x;
    const uint32_t pieces = slabs * (SLAB_COLUMNS / 8), slot = uint32_t(i / pieces);
    const int piece = int(i % pieces);
    if (slot >= slots) return;
    const uint32_t pair = order[slot];
    if (pair == NO_PAIR) return;
    uint4 hi = make_uint4(0, 0, 0, 0), lo = hi;
    if (8 * piece < cols) {
        const float4 *from =
            reinterpret_cast<const float4 *>(x + size_t(pair / divisor) * cols) + 2 * piece;
        const float4 a = __ldg(from), b = __ldg(from + 1);
        split_bf16x2(hi.x, lo.x, a.x, a.y), split_bf16x2(hi.y, lo.y, a.z, a.w);
        split_bf16x2(hi.z, lo.z, b.x, b.y), split_bf16x2(hi.w, lo.w, b.z, b.w);
    }
    to[slot_piece(0, slabs, slots, slot, piece)] = hi;
    if (parts == 2) to[slot_piece(1, slabs, slots, slot, piece)] = lo;
}

// out[t,:] = Σ_j weights[t,j] · y[t·k + j,:], j in order; NaN for a token with an index that names
// no expert, whose y nobody wrote. `quads`: rows / 4. A thread per four rows of a token.
extern "C" __global__ void __launch_bounds__(THREADS)
    moe_add(float *__restrict__ out, const float4 *__restrict__ y,
            const uint32_t *__restrict__ indices, const float *__restrict__ weights,
            uint32_t experts, uint32_t quads, int k, uint64_t n) {
    const uint64_t i = blockIdx.x * uint64_t(THREADS) + threadIdx.x;
    if (i >= n) return;
    const uint64_t first = i / quads * k;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
    for (int j = 0; j < k; j++) {
        const float nan = quiet_nan();
        float4 v = make_float4(nan, nan, nan, nan);
        if (indices[first + j] < experts) v = y[(first + j) * quads + i % quads];
        const float weight = weights[first + j];
        sum.x = fmaf(weight, v.x, sum.x), sum.y = fmaf(weight, v.y, sum.y);
        sum.z = fmaf(weight, v.z, sum.z), sum.w = fmaf(weight, v.w, sum.w);
    }
    store4(out + 4 * i, 0, 4, aligned16(out), sum);
}
