// From logits to tokens, in the steps of THE TABLE's `sample`. Nothing is sorted: the k-th largest,
// the end of the nucleus and the token of a draw are each the first token, in descending order, at
// which a number of tokens or a sum of weights is reached, and that is found by bins.
//
//   sample_score    a row at a glance: the largest score, the sum of e^logit
//   sample_weigh    every token's weight, added to one of 2,048 bins, equal widths of its logarithm
//   sample_collect  the tokens of the few bins in which something is decided
//   sample_pick     by one block a row: the bin, and in it the token, by five digits of its key
//
// A row of temperature 0 needs the first and the last alone. Where a bin's tokens were not
// collected, because too many scores are equal, sample_pick looks for them in the whole row, five
// times for each of up to three cuts: right, but not fast.
//
// **Equal calls give equal tokens, whatever else is in the batch.** Weights are whole numbers of 42
// bits, scaled by the whole halvings that all tokens of a bin have in common, so that a bin's sum
// is exact in any order and on any grid. All other sums are in f64 and in a fixed order. A weight
// is off by 2^-43 of itself, less than summing a vocabulary in f64 one by one may be.
//
// **By counting**, for V = 201,088 on an H200 (132 multiprocessors at 1.75 GHz, 4.2 TB/s):
//   bytes    three passes over 804 KB a row: 2.4 MB for one row, from the second cache but for the
//            first; 154 MB for 64, at most 37 us of memory. Bins are 24 KB a row.
//   weights  one polynomial a token: 15 operations in f64, 8 clocks for 32 tokens; two atomics in
//            shared memory, three with top_k, 10 to 15 clocks for 32 tokens with the banks'
//            conflicts. Of 64 rows a multiprocessor has 3,050 times 32 tokens: 18 to 26 us.
//   launches one transfer and four kernels, each at least 2 us; two kernels where nothing is drawn.
//   1 row    transfer 3, score 4, weigh 5, collect 5, pick 5 (three cuts: 9): 22 to 26 us.
//   64 rows  transfer 3, score 15, weigh 26, collect 16, pick 8: 68 us. Masks are 1.6 MB: 30 us
//            more for their transfer, some less for the tokens that they exclude.
#include "sample.cuh"

namespace {

// Tokens that mean that there is none: a logit is not a number, or the mask leaves nothing.
constexpr uint32_t NOT_FINITE = UINT32_MAX, NOTHING_LEFT = UINT32_MAX - 1;

// Tokens of a row that sample_collect found, or the whole row.
struct Members {
    const uint64_t *keys;
    int found;
    const Scores &scores;
    const Halvings &halvings;

    // Whether those of a bin, which has some, are among them: it was collected as a whole or not.
    __device__ __forceinline__ bool has(int bin) const {
        if (found > MEMBERS) return false;
        bool any = false;
        for (int i = threadIdx.x; i < found && !any; i += BLOCK)
            any = halvings.bin(halvings.of(score_of(keys[i]))) == bin;
        return __syncthreads_or(any);
    }

    // Calls f with each token of a bin and its halvings.
    template <class F>
    __device__ __forceinline__ void for_bin(int bin, bool is_here, F f) const {
        const auto look = [&](uint64_t key) {
            const uint64_t h = halvings.of(score_of(key));
            if (halvings.bin(h) == bin) f(key, h);
        };
        if (is_here)
            for (int i = threadIdx.x; i < found; i += BLOCK) look(keys[i]);
        else
            scores.for_pieces(0, 1, [&](const float (&x)[EACH], int first) {
                for (int k = 0; k < EACH; k++) look(key_of(x[k], first + k));
            });
    }
};

// A token, and the sum of the weights down to it.
struct Reached {
    uint64_t key;
    double through;
};

// The token at which the target is reached: its bin, then digit by digit its key.
__device__ __noinline__ Reached reach(const Target &target, const Bins &bins,
                                      const Members &members, Histogram &histogram,
                                      Shared &shared) {
    Place place = bins.find(target, shared);
    const int bin = place.bin;
    const bool is_here = members.has(bin);
    const double unit = members.halvings.unit(bin);
    uint64_t key = 0;
    for (int shift = KEY_BITS - DIGIT; shift >= 0; shift -= DIGIT) {
        constexpr uint64_t largest = BINS - 1;  // of a digit, which comes first
        __syncthreads();                        // the digit before has been read
        histogram.clear();
        __syncthreads();
        members.for_bin(bin, is_here, [&](uint64_t other, uint64_t halvings) {
            if (other >> (shift + DIGIT) == key)
                histogram.add(largest - (other >> shift & largest), weight_of(halvings), true);
        });
        __syncthreads();
        Bins digits;
        for (int k = 0; k < EACH; k++) {
            const int digit = threadIdx.x * EACH + k;
            digits.mass[k] = double(histogram.weight(digit)) * unit;
            digits.count[k] = histogram.count[digit];
        }
        digits.sum_up(place.before, place.count_before, shared);
        place = digits.find(target, shared);
        key = key << DIGIT | (largest - place.bin);
    }
    return {key, place.through};
}

// Of a bin that has tokens, the sum of the weights of those whose keys are not below `least`.
__device__ __noinline__ double weight_down_to(uint64_t least, int bin, const Members &members,
                                              uint64_t *sums) {
    uint64_t sum = 0;
    members.for_bin(bin, members.has(bin), [&](uint64_t key, uint64_t halvings) {
        if (key >= least) sum += weight_of(halvings);
    });
    for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, by);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = sums[0];
    for (int i = 1; i < WARPS; i++) sum += sums[i];
    return double(sum) * members.halvings.unit(bin);
}

// The lowest key whose token is at least `min_p` times as probable as the most probable. By each
// warp: the largest number that is not the score of such a token grows by five bits a round.
__device__ __forceinline__ uint64_t likely_enough(double min_p, uint64_t best, double temperature) {
    const double max = score_of(best);
    uint32_t below = 0;
    for (int shift = 30; shift >= 0; shift -= 5) {
        const uint32_t step = threadIdx.x % 32, ordered = below + (step << shift);
        const bool is_above = shift == 30 && step > 3;  // the first round has two of 32 bits
        const bool is_enough =
            is_above || ordered >= best >> ID_BITS
            || exp((double(score_of_ordered(ordered)) - max) / temperature) >= min_p;
        below += uint32_t(__popc(~__ballot_sync(ALL_LANES, is_enough)) - 1) << shift;
    }
    return uint64_t(below + 1) << ID_BITS;
}

}  // namespace

// Of part blockIdx.x of row blockIdx.y. Empties the row's bins.
extern "C" __global__ void __launch_bounds__(BLOCK, 2)
    sample_score(uint64_t *__restrict__ scratch, const float *__restrict__ logits,
                 const Row *__restrict__ rows, const uint32_t *__restrict__ words, int vocab) {
    __shared__ float staged[PIECE];
    __shared__ Part of_warps[WARPS];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    const size_t r = blockIdx.y;
    const Row &row = rows[r];
    const Work work(scratch, r, vocab);
    const Scores scores(logits, words, row, r, vocab, staged);
    for (int i = blockIdx.x * BLOCK + tid; i < BINS; i += gridDim.x * BLOCK)
        work.weights[i] = 0, work.counts[i] = 0;
    if (blockIdx.x == 0 && tid == 0) *work.found = 0;

    float raw[PIECES][EACH];
#pragma unroll
    for (int p = 0; p < PIECES; p++) scores.load(raw[p], blockIdx.x * PIECES + p);
    Part mine = {0, 0, -INFINITY, INFINITY};
    float best = -INFINITY;
    int best_id = 0;
    bool finite = true;
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        const int piece = blockIdx.x * PIECES + p, first = scores.first(piece);
        float x[EACH];
        for (int k = 0; k < EACH; k++) {
            x[k] = raw[p][k];
            if (first + k < vocab) finite = finite && fabsf(x[k]) < INFINITY;
            else raw[p][k] = -INFINITY;
            mine.largest = fmaxf(mine.largest, raw[p][k]);
        }
        if (piece < scores.pieces()) scores.change(x, piece);
        for (int k = 0; k < EACH; k++) {
            if (first + k >= vocab) continue;
            if (x[k] > best) best = x[k], best_id = first + k;  // the lower id among equals
            if (x[k] > -INFINITY) mine.lowest = fminf(mine.lowest, x[k]);
        }
    }
    mine.best = key_of(best, best_id), mine.sum = finite ? 0 : NAN;
    for (int by = 16; by > 0; by /= 2) {
        const uint64_t best = __shfl_xor_sync(ALL_LANES, mine.best, by);
        mine.best = best > mine.best ? best : mine.best;
        mine.largest = fmaxf(mine.largest, __shfl_xor_sync(ALL_LANES, mine.largest, by));
        mine.lowest = fminf(mine.lowest, __shfl_xor_sync(ALL_LANES, mine.lowest, by));
    }
    if (lane == 0) of_warps[warp] = mine;
    __syncthreads();
    for (int i = 0; i < WARPS; i++) mine.largest = fmaxf(mine.largest, of_warps[i].largest);
    // For a log-probability in f32: exponentials in f32, four to a sum in f32, those in f64.
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        float sum = 0;
        for (int k = 0; k < EACH; k++) sum += expf(raw[p][k] - mine.largest);
        mine.sum += double(sum);
    }
    for (int by = 16; by > 0; by /= 2) mine.sum += __shfl_xor_sync(ALL_LANES, mine.sum, by);
    if (lane == 0) of_warps[warp].sum = mine.sum;
    __syncthreads();
    if (tid == 0) {
        mine.sum = 0;
        for (int i = 0; i < WARPS; i++) {
            mine.best = of_warps[i].best > mine.best ? of_warps[i].best : mine.best;
            mine.lowest = fminf(mine.lowest, of_warps[i].lowest);
            mine.sum += of_warps[i].sum;
        }
        work.parts[blockIdx.x] = mine;
    }
}

// Every gridDim.x-th piece of row blockIdx.y.
extern "C" __global__ void __launch_bounds__(BLOCK, 2)
    sample_weigh(uint64_t *__restrict__ scratch, const float *__restrict__ logits,
                 const Row *__restrict__ rows, const uint32_t *__restrict__ words, int vocab) {
    __shared__ float staged[PIECE];
    __shared__ Histogram histogram;
    const size_t r = blockIdx.y;
    const Row &row = rows[r];
    const Work work(scratch, r, vocab);
    const Part all = summary(work);
    if (!is_drawn(all, row)) return;
    const Scores scores(logits, words, row, r, vocab, staged);
    const Halvings halvings(all, row.temperature);
    histogram.clear();
    __syncthreads();
    scores.for_pieces(blockIdx.x, gridDim.x, [&](const float (&x)[EACH], int) {
        for (int k = 0; k < EACH; k++) {
            const uint64_t h = halvings.of(x[k]);
            if (h < FAINT) histogram.add(halvings.bin(h), weight_of(h), row.top_k > 0);
        }
    });
    __syncthreads();
    for (int bin = threadIdx.x; bin < BINS; bin += BLOCK) {
        const uint64_t weight = histogram.weight(bin);
        if (weight == 0) continue;
        atomicAdd(reinterpret_cast<unsigned long long *>(work.weights + bin), weight);
        if (row.top_k > 0) atomicAdd(&work.counts[bin], histogram.count[bin]);
    }
}

// Every gridDim.x-th piece of row blockIdx.y: tokens of the bins that sample_pick will look into.
// Where a cut has to be known exactly to find the next, these are all bins in which that may be. To
// err here costs time alone.
extern "C" __global__ void __launch_bounds__(BLOCK, 2)
    sample_collect(uint64_t *__restrict__ scratch, const float *__restrict__ logits,
                   const Row *__restrict__ rows, const uint32_t *__restrict__ words, int vocab) {
    __shared__ float staged[PIECE];
    __shared__ Shared shared;
    const size_t r = blockIdx.y;
    const Row &row = rows[r];
    const Work work(scratch, r, vocab);
    const Part all = summary(work);
    if (!is_drawn(all, row)) return;
    const Scores scores(logits, words, row, r, vocab, staged);
    const Halvings halvings(all, row.temperature);
    const Bins bins = bins_of_row(work, halvings, shared);

    constexpr int CUTS = 4;
    int from[CUTS], to[CUTS];
    for (int i = 0; i < CUTS; i++) from[i] = BINS, to[i] = -1;
    double least = bins.total, most = bins.total;  // sum of the weights of what is left
    if (row.top_k > 0 && row.top_k < bins.total_count) {
        const Place place = bins.find(tokens(row.top_k), shared);
        from[0] = to[0] = place.bin, least = place.before, most = place.through;
    }
    if (row.top_p < 1) {
        const Place low = bins.find(as_much_as(row.top_p * least), shared);
        const Place high =
            least == most ? low : bins.find(as_much_as(row.top_p * most), shared);
        from[1] = low.bin, to[1] = high.bin, least = low.before, most = fmin(most, high.through);
    }
    if (row.min_p > 0) {
        const double at = -log2(row.min_p) * double(uint64_t(1) << POINT), around = 1 << 20;
        const int low = at < double(FAINT) ? halvings.bin(uint64_t(fmax(at - around, 0.0))) : BINS;
        if (low < BINS) {
            const int high = ::min(halvings.bin(uint64_t(fmax(at, 0.0) + around)), BINS - 1);
            const Place place = bins.at(low, shared);
            if (place.before < most) {
                from[2] = low, to[2] = high, least = fmin(least, place.before);
                most = fmin(most, bins.at(high, shared).through);
            }
        }
    }
    from[3] = bins.find(more_than(row.uniform * least), shared).bin;
    to[3] = least == most ? from[3] : bins.find(more_than(row.uniform * most), shared).bin;

    const int lane = threadIdx.x % 32;
    scores.for_pieces(blockIdx.x, gridDim.x, [&](const float (&x)[EACH], int first) {
        for (int k = 0; k < EACH; k++) {
            const int bin = halvings.bin(halvings.of(x[k]));
            bool is_wanted = false;
            for (int i = 0; i < CUTS; i++)
                is_wanted = is_wanted || (from[i] <= bin && bin <= to[i]);
            const unsigned lanes = __ballot_sync(ALL_LANES, is_wanted);
            if (lanes == 0) continue;
            uint32_t place = 0;
            if (lane == 0) place = atomicAdd(work.found, uint32_t(__popc(lanes)));
            place = __shfl_sync(ALL_LANES, place, 0) + __popc(lanes & ((1u << lane) - 1));
            if (is_wanted && place < MEMBERS) work.members[place] = key_of(x[k], first + k);
        }
    });
}

// The token of row blockIdx.x and the logarithm of its probability under the logits as they came.
extern "C" __global__ void __launch_bounds__(BLOCK, 1)
    sample_pick(uint32_t *__restrict__ tokens_out, float *__restrict__ logprobs,
                uint64_t *__restrict__ scratch, const float *__restrict__ logits,
                const Row *__restrict__ rows, const uint32_t *__restrict__ words, int vocab) {
    __shared__ float staged[PIECE];
    __shared__ Histogram histogram;
    __shared__ Shared shared;
    __shared__ uint64_t sums[WARPS];
    const size_t r = blockIdx.x;
    const Row &row = rows[r];
    const Work work(scratch, r, vocab);
    const Part all = summary(work);
    const Scores scores(logits, words, row, r, vocab, staged);
    uint64_t token = all.best;
    if (is_drawn(all, row)) {
        const Halvings halvings(all, row.temperature);
        const Bins bins = bins_of_row(work, halvings, shared);
        const Members members = {work.members, int(*work.found), scores, halvings};
        const auto reaches = [&](const Target &target) {
            return reach(target, bins, members, histogram, shared);
        };
        Reached cut = {0, bins.total};  // the last key that is left
        if (row.top_k > 0 && row.top_k < bins.total_count) cut = reaches(tokens(row.top_k));
        if (row.top_p < 1) cut = reaches(as_much_as(row.top_p * cut.through));
        if (row.min_p > 0) {
            const uint64_t least = likely_enough(row.min_p, all.best, row.temperature);
            const int bin = halvings.bin(halvings.of(score_of(least)));
            if (least > cut.key && bin < BINS) {
                const Place place = bins.at(bin, shared);
                cut = {least, place.before};
                if (place.through > place.before)
                    cut.through += weight_down_to(least, bin, members, sums);
            }
        }
        token = reaches(more_than(row.uniform * cut.through)).key;
        if (token < cut.key) token = all.best;  // should rounding have led behind the cut
    }
    if (threadIdx.x == 0) {
        const bool is_token = is_finite(all) && is_some(all);
        tokens_out[r] = !is_finite(all) ? NOT_FINITE : !is_some(all) ? NOTHING_LEFT : id_of(token);
        logprobs[r] = is_token ? float(scores.logits[id_of(token)] - (all.largest + log(all.sum)))
                               : NAN;
    }
}
