// topk_softmax: the k largest logits of each row in descending order, ties to the lower index, NaN
// behind every number, and the softmax over those k. Rows from *live on go to no expert: index
// `experts`, weight 0; a null pointer says that all are live.
#include "args.cuh"

namespace {

// Orders logits as the router wants them: larger numbers are larger keys, −0 and +0 are equal, NaN
// is below −∞.
__device__ uint32_t rank_of(float logit) {
    if (logit != logit) return 0;
    const uint32_t bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

}  // namespace

// One warp per row. Each of the k rounds finds the best logit behind the one found before it, so
// nothing has to be marked as taken and any number of experts will do: a lane looks at its share
// again, from the first cache.
extern "C" __global__ void topk_softmax(uint32_t *__restrict__ indices, float *__restrict__ weights,
                                        const float *__restrict__ logits,
                                        const uint32_t *__restrict__ live, int tokens, int experts,
                                        int k) {
    const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
    const int t = blockIdx.x * warps + threadIdx.x / 32;
    if (t >= tokens) return;
    logits += size_t(t) * experts, indices += size_t(t) * k, weights += size_t(t) * k;
    if (live && unsigned(t) >= *live) {
        for (int j = lane; j < k; j += 32) indices[j] = experts, weights[j] = 0.0f;
        return;
    }

    // Rank above, then the lower index above: the largest is the next in order, and no two are
    // equal.
    uint64_t last = ~uint64_t(0);
    float largest = 0.0f, sum = 0.0f;
    for (int j = 0; j < k; j++) {
        uint64_t best = 0;
        for (int e = lane; e < experts; e += 32) {
            const uint64_t key = uint64_t(rank_of(logits[e])) << 32 | (0xffffffffu - e);
            if (key < last && key > best) best = key;
        }
        for (int other = 16; other > 0; other /= 2) {
            const uint64_t theirs = __shfl_xor_sync(ALL_LANES, best, other);
            best = theirs > best ? theirs : best;
        }
        last = best;
        const uint32_t expert = 0xffffffffu - uint32_t(best);
        const float logit = logits[expert];
        if (j == 0) largest = logit;
        const float weight = expf(logit - largest);
        sum += weight;
        if (lane == 0) indices[j] = expert, weights[j] = weight;
    }
    __syncwarp();
    for (int j = lane; j < k; j += 32) weights[j] /= sum;
}
