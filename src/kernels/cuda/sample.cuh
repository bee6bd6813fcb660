// What the kernels of sample.cu share: a row's scores, its tokens' weights as whole numbers, and
// bins of tokens in descending order.
#pragma once
#include "args.cuh"

namespace {

constexpr int BLOCK = 512, WARPS = BLOCK / 32;
constexpr int EACH = 4;               // tokens and bins of a thread, beside each other
constexpr int PIECE = BLOCK * EACH;   // tokens that a block looks at together; sample.rs has it too
constexpr int BINS = BLOCK * EACH;
constexpr int PIECES = 4;             // of a part of a row
constexpr int MEMBERS = 1 << 14;      // tokens of a row that are collected at most
constexpr int ID_BITS = 23, DIGIT = 11, KEY_BITS = 5 * DIGIT;  // of a key: 32 + ID_BITS

// How a token is drawn from one row of logits; sample.rs has its twin. Lists lie in one array of
// words, see List; a mask is a bit for each token.
struct List {
    // For each piece of the vocabulary and for its end, where the list has come; then the ids,
    // ascending; then a value for each.
    uint32_t first, count;
};
struct Row {
    double temperature, top_p, min_p, uniform;
    uint32_t top_k;
    float repetition, presence, frequency;
    List seen, bias;
    uint32_t mask_first, mask_words, is_masked, padding;
};

// ---- scores ----

// A number that is larger for a larger score, and for a lower id among equal scores.
__device__ __forceinline__ uint32_t ordered_of(float score) {
    const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 becomes 0, which it is equal to
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float score_of_ordered(uint32_t ordered) {
    return __uint_as_float(ordered >> 31 ? ordered & 0x7fffffff : ~ordered);
}
__device__ __forceinline__ uint64_t key_of(float score, uint32_t id) {
    return uint64_t(ordered_of(score)) << ID_BITS | ((1u << ID_BITS) - 1 - id);
}
__device__ __forceinline__ float score_of(uint64_t key) {
    return score_of_ordered(uint32_t(key >> ID_BITS));
}
__device__ __forceinline__ uint32_t id_of(uint64_t key) {
    constexpr uint32_t ids = (1u << ID_BITS) - 1;
    return ids - (uint32_t(key) & ids);
}

// One row: penalties, bias and mask of it in the one place that knows of them.
struct Scores {
    const float *logits;
    const uint32_t *words;
    const Row &row;
    int vocab;
    float *staged;  // PIECE of shared memory
    bool wide;

    __device__ __forceinline__ Scores(const float *all, const uint32_t *words, const Row &row,
                                      size_t index, int vocab, float *staged)
        : logits(all + index * vocab), words(words), row(row), vocab(vocab), staged(staged),
          wide(vocab % EACH == 0 && aligned16(logits)) {}

    __device__ __forceinline__ int pieces() const { return (vocab + PIECE - 1) / PIECE; }
    // The first token of this thread's four.
    __device__ __forceinline__ int first(int piece) const {
        return piece * PIECE + int(threadIdx.x) * EACH;
    }

    // Logits as they came; what is behind the vocabulary is not to be used.
    __device__ __forceinline__ void load(float (&x)[EACH], int piece) const {
        float4 v = make_float4(0, 0, 0, 0);
        if (first(piece) < vocab) v = load4(logits, first(piece), vocab, wide);
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    }

    // From logits to scores; -inf behind the vocabulary. By all threads of the block.
    __device__ __forceinline__ void change(float (&x)[EACH], int piece) const {
        const int i = first(piece);
        if (row.seen.count + row.bias.count > 0) {
            __syncthreads();  // the piece before has been read
            for (int k = 0; k < EACH; k++) staged[threadIdx.x * EACH + k] = x[k];
            __syncthreads();
            // Rounded after every operation, as on a CPU: a fused one could change which of two
            // scores is larger.
            for_listed(row.seen, piece, [&](float &score, uint32_t count) {
                score = score > 0 ? score / row.repetition : score * row.repetition;
                const float penalty =
                    __fadd_rn(row.presence, __fmul_rn(row.frequency, float(count)));
                if (count > 0) score = __fadd_rn(score, -penalty);
            });
            __syncthreads();
            for_listed(row.bias, piece,
                       [](float &score, uint32_t bits) { score += __uint_as_float(bits); });
            __syncthreads();
            for (int k = 0; k < EACH; k++) x[k] = staged[threadIdx.x * EACH + k];
        }
        uint32_t allowed = ~0u;
        if (row.is_masked) {
            const uint32_t word = i / 32;
            allowed = word < row.mask_words ? words[row.mask_first + word] >> i % 32 : 0;
        }
        for (int k = 0; k < EACH; k++) {
            // A penalty may push a finite logit past the largest float.
            x[k] = fminf(fmaxf(x[k], -3.402823466e38f), 3.402823466e38f);
            if (i + k >= vocab || !(allowed >> k & 1)) x[k] = -INFINITY;
        }
    }

    template <class F>
    __device__ __forceinline__ void for_listed(const List &list, int piece, F f) const {
        if (list.count == 0) return;
        const uint32_t *starts = words + list.first, *ids = starts + pieces() + 1;
        for (uint32_t j = starts[piece] + threadIdx.x; j < starts[piece + 1]; j += BLOCK)
            f(staged[ids[j] - piece * PIECE], ids[list.count + j]);
    }

    // Calls f with the scores of every step-th piece. By all threads of the block.
    template <class F> __device__ __forceinline__ void for_pieces(int start, int step, F f) const {
        float next[EACH];
        load(next, start);
        for (int piece = start; piece < pieces(); piece += step) {
            float x[EACH];
            for (int k = 0; k < EACH; k++) x[k] = next[k];
            load(next, piece + step);  // on its way while these are worked on
            change(x, piece);
            f(x, first(piece));
        }
    }
};

// ---- a row at a glance ----

struct Part {
    uint64_t best;         // the largest key
    double sum;            // of e^(logit - largest), NaN when a logit is no number
    float largest, lowest; // logit as it came; score that is not excluded
};

// A row's share of the scratch memory: what the kernels leave to each other. sample.rs knows its
// size.
struct Work {
    int parts_count;
    Part *parts;
    uint64_t *weights;  // of bins
    uint64_t *members;  // keys, in any order
    uint32_t *counts;   // of bins
    uint32_t *found;    // how many members there are, or would be if there were room

    __device__ __forceinline__ Work(uint64_t *scratch, size_t row, int vocab)
        : parts_count((vocab + PIECES * PIECE - 1) / (PIECES * PIECE)) {
        const size_t words = parts_count * sizeof(Part) / 8;
        parts = reinterpret_cast<Part *>(scratch + row * (words + BINS + MEMBERS + BINS / 2 + 1));
        weights = reinterpret_cast<uint64_t *>(parts + parts_count);
        members = weights + BINS;
        counts = reinterpret_cast<uint32_t *>(members + MEMBERS);
        found = counts + BINS;
    }
};

// Of a whole row, from its parts: by each warp, in the same order.
__device__ __forceinline__ Part summary(const Work &work) {
    const Part *parts = work.parts;
    const int n = work.parts_count;
    Part all = {0, 0, -INFINITY, INFINITY};
    const int lane = threadIdx.x % 32;
    for (int i = lane; i < n; i += 32) {
        all.best = parts[i].best > all.best ? parts[i].best : all.best;
        all.largest = fmaxf(all.largest, parts[i].largest);
        all.lowest = fminf(all.lowest, parts[i].lowest);
    }
    for (int by = 16; by > 0; by /= 2) {
        const uint64_t best = __shfl_xor_sync(ALL_LANES, all.best, by);
        all.best = best > all.best ? best : all.best;
        all.largest = fmaxf(all.largest, __shfl_xor_sync(ALL_LANES, all.largest, by));
        all.lowest = fminf(all.lowest, __shfl_xor_sync(ALL_LANES, all.lowest, by));
    }
    for (int i = lane; i < n; i += 32)
        all.sum += parts[i].sum * exp(double(parts[i].largest) - all.largest);
    for (int by = 16; by > 0; by /= 2) all.sum += __shfl_xor_sync(ALL_LANES, all.sum, by);
    return all;
}
__device__ __forceinline__ bool is_finite(const Part &all) { return all.sum == all.sum; }
__device__ __forceinline__ bool is_some(const Part &all) {
    return score_of(all.best) != -INFINITY;
}
// Whether there is more to be done than to take the largest.
__device__ __forceinline__ bool is_drawn(const Part &all, const Row &row) {
    return row.temperature != 0 && is_finite(all) && is_some(all);
}

// ---- weights ----

__device__ __forceinline__ uint64_t bits_of(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
__device__ __forceinline__ double of_bits(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
// 2^-n for 0 <= n < 1023.
__device__ __forceinline__ double half_to_the(int n) { return of_bits(uint64_t(1023 - n) << 52); }

// How often the weight of the most probable token is halved to come to another's: (max - score) /
// temperature / ln 2, with 44 bits behind the point. 96 of them leave 2^-96, which of at most 2^21
// tokens is nothing beside the largest's 1 in f64: such a token is not there.
constexpr int POINT = 44, WEIGHT_BITS = 42;
constexpr uint64_t FAINT = uint64_t(96) << POINT;

struct Halvings {
    double max, per_score;
    int shift;  // from halvings to bins, of which the lowest score is to have one

    __device__ __forceinline__ Halvings(const Part &all, double temperature)
        : max(score_of(all.best)),
          per_score(fmin(1.4426950408889634 / temperature, 1.7976931348623157e308)) {
        const uint64_t most = of(all.lowest);
        shift = 41 - __clz(int((most < FAINT ? most : FAINT - 1) >> 20));
    }
    // Never less for a lower score. Adding 256 leaves 44 bits behind the point.
    __device__ __forceinline__ uint64_t of(float score) const {
        const double sum = fma(max - double(score), per_score, 256.0);
        return sum < 256.0 + 96.0 ? bits_of(sum) - bits_of(256.0) : FAINT;
    }
    __device__ __forceinline__ int bin(uint64_t halvings) const {
        return halvings < FAINT ? int(halvings >> shift) : BINS;
    }
    // Of all tokens of a bin, a weight of 1 in weight_of's numbers.
    __device__ __forceinline__ double unit(int bin) const {
        return half_to_the(WEIGHT_BITS + (bin >> ::min(POINT - shift, 31)));
    }
};

// What whole halvings leave of a weight, times 2^42: 2^41 to 2^42. 2^-f by its series around 1/2.
__device__ __forceinline__ uint64_t weight_of(uint64_t halvings) {
    const double f = of_bits(uint64_t(1023) << 52 | (halvings << (64 - POINT)) >> 12) - 1.5;
    constexpr double ln2 = 0.69314718055994530942, first = 1.41421356237309504880 * (1ull << 41);
    constexpr double a1 = -first * ln2, a2 = -a1 * ln2 / 2, a3 = -a2 * ln2 / 3, a4 = -a3 * ln2 / 4,
                     a5 = -a4 * ln2 / 5, a6 = -a5 * ln2 / 6, a7 = -a6 * ln2 / 7, a8 = -a7 * ln2 / 8,
                     a9 = -a8 * ln2 / 9, a10 = -a9 * ln2 / 10, a11 = -a10 * ln2 / 11;
    double w = fma(a11, f, a10);
    w = fma(w, f, a9), w = fma(w, f, a8), w = fma(w, f, a7), w = fma(w, f, a6), w = fma(w, f, a5);
    w = fma(w, f, a4), w = fma(w, f, a3), w = fma(w, f, a2), w = fma(w, f, a1);
    w = fma(w, f, first);
    return bits_of(w + 4503599627370496.0) & 0xfffffffffffffull;
}

// ---- bins ----

// Sums of weights and numbers of tokens. Whole numbers: their order is of no matter.
struct Histogram {
    uint32_t low[BINS], high[BINS], count[BINS];

    __device__ __forceinline__ void clear() {
        for (int i = threadIdx.x; i < BINS; i += BLOCK) low[i] = high[i] = count[i] = 0;
    }
    __device__ __forceinline__ void add(int bin, uint64_t weight, bool is_counted) {
        const uint32_t part = uint32_t(weight), before = atomicAdd(&low[bin], part);
        const uint32_t carry = before + part < before;
        atomicAdd(&high[bin], uint32_t(weight >> 32) + carry);
        if (is_counted) atomicAdd(&count[bin], 1u);
    }
    __device__ __forceinline__ uint64_t weight(int bin) const {
        return uint64_t(high[bin]) << 32 | low[bin];
    }
};

// A bin, with what comes before it and what it ends at.
struct Place {
    int bin;
    uint32_t count_before, count;
    double before, through;
};

// The first place, in descending order, at which the number of tokens or the sum of weights comes
// to something.
struct Target {
    uint32_t count;  // 0: the sum decides
    double sum;
    bool more;  // than the sum, not as much

    __device__ __forceinline__ bool reached(uint32_t n, double mass) const {
        return count > 0 ? n >= count : more ? mass > sum : mass >= sum;
    }
};
__device__ __forceinline__ Target tokens(uint32_t count) { return {count, 0, false}; }
__device__ __forceinline__ Target as_much_as(double sum) { return {0, sum, false}; }
__device__ __forceinline__ Target more_than(double sum) { return {0, sum, true}; }

// What threads tell each other.
struct Shared {
    double masses[WARPS];
    uint32_t counts[WARPS];
    int first, last;
    Place place;
};

// Bins in descending order, EACH of them a thread's.
struct Bins {
    double mass[EACH], before, total;
    uint32_t count[EACH], count_before, total_count;

    // Sums in f64, in a fixed order, on top of what stands before all of the bins.
    __device__ __forceinline__ void sum_up(double base, uint32_t base_count, Shared &shared) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        double sum = 0;
        uint32_t n = 0;
        for (int k = 0; k < EACH; k++) sum += mass[k], n += count[k];
        for (int by = 1; by < 32; by *= 2) {
            const double other = __shfl_up_sync(ALL_LANES, sum, by);
            const uint32_t others = __shfl_up_sync(ALL_LANES, n, by);
            if (lane >= by) sum += other, n += others;
        }
        __syncthreads();  // `shared` may still be read
        if (lane == 31) shared.masses[warp] = sum, shared.counts[warp] = n;
        __syncthreads();
        before = __shfl_up_sync(ALL_LANES, sum, 1), count_before = __shfl_up_sync(ALL_LANES, n, 1);
        if (lane == 0) before = 0, count_before = 0;
        double of_warps = base;
        uint32_t count_of_warps = base_count;
        for (int i = 0; i < WARPS; i++) {
            if (i == warp) before += of_warps, count_before += count_of_warps;
            of_warps += shared.masses[i], count_of_warps += shared.counts[i];
        }
        total = of_warps, total_count = count_of_warps;
    }

    __device__ __forceinline__ Place at(int bin, Shared &shared) const {
        __syncthreads();  // `shared` may still be read
        if (bin / EACH == int(threadIdx.x)) {
            Place place = {bin, count_before, 0, before, before};
            for (int k = 0; k <= bin % EACH; k++) {
                place.before = place.through, place.count_before += place.count;
                place.through += mass[k], place.count = count[k];
            }
            shared.place = place;
        }
        __syncthreads();
        return shared.place;
    }

    // The bin in which the target is reached; the last with any tokens, should rounding keep it
    // from being reached at all.
    __device__ __forceinline__ Place find(const Target &target, Shared &shared) const {
        const int tid = threadIdx.x, lane = tid % 32;
        int first = BINS, last = -1;
        double sum = before;
        uint32_t n = count_before;
        for (int k = 0; k < EACH; k++) {
            sum += mass[k], n += count[k];
            if (!(mass[k] > 0)) continue;
            last = tid * EACH + k;
            if (first == BINS && target.reached(n, sum)) first = last;
        }
        __syncthreads();  // `shared` may still be read
        if (tid == 0) shared.first = BINS, shared.last = 0;
        __syncthreads();
        const unsigned reached = __ballot_sync(ALL_LANES, first < BINS);
        const unsigned filled = __ballot_sync(ALL_LANES, last >= 0);
        if (reached && lane == __ffs(reached) - 1) atomicMin(&shared.first, first);
        if (filled && lane == 31 - __clz(int(filled))) atomicMax(&shared.last, last);
        __syncthreads();
        return at(shared.first < BINS ? shared.first : shared.last, shared);
    }
};

// A row's bins, as sample_weigh left them.
__device__ __forceinline__ Bins bins_of_row(const Work &work, const Halvings &halvings,
                                            Shared &shared) {
    Bins bins;
    for (int k = 0; k < EACH; k++) {
        const int bin = threadIdx.x * EACH + k;
        bins.mass[k] = double(work.weights[bin]) * halvings.unit(bin);
        bins.count[k] = work.counts[bin];
    }
    bins.sum_up(0, 0, shared);
    return bins;
}

}  // namespace
