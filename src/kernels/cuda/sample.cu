// From logits to tokens, in the steps of THE TABLE's `sample`, without sorting a vocabulary.
//
// Chunks of 2,048 tokens are sorted on their own (sample_sort); beside each sorted chunk lie the
// running sums of its weights (sample_weigh). In what order tokens come is then a matter of a few
// steps over some hundred sorted lists (sample_pick): the k-th largest, the end of the nucleus and
// the token of a draw are each the first token, in descending order, at which a count or a sum
// reaches a target.
//
// Sums are in f64 and in a fixed order: equal calls give equal tokens, whatever else is in the
// batch.
#include "args.cuh"

constexpr int CHUNK = 2048;
constexpr int SORT_THREADS = 256;
constexpr int EACH = CHUNK / SORT_THREADS;
constexpr int PICK_THREADS = 128;

// How a token is drawn from one row of logits; sample.rs has its twin. Lists lie in one array of
// words: ids of tokens seen, ascending, then how often each; ids with a bias, ascending, then the
// biases; a mask.
struct Row {
    double temperature, top_p, min_p, uniform;
    uint32_t top_k;
    float repetition, presence, frequency;
    uint32_t seen_first, seen_count, bias_first, bias_count, mask_first, mask_words, is_masked,
        padding;
};

// Tokens that mean that there is none: a logit is not a number, or the mask leaves nothing.
constexpr uint32_t NOT_FINITE = UINT32_MAX, NOTHING_LEFT = UINT32_MAX - 1;

// A number that is larger for a larger score, and for a lower id among equal scores.
__device__ __forceinline__ uint64_t sort_key(float score, uint32_t id) {
    const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 becomes 0, which it is equal to
    const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return uint64_t(ordered) << 32 | uint32_t(~id);
}
__device__ __forceinline__ float score_of(uint64_t key) {
    const uint32_t ordered = key >> 32;
    return __uint_as_float(ordered >> 31 ? ordered & 0x7fffffff : ~ordered);
}
__device__ __forceinline__ uint32_t id_of(uint64_t key) { return ~uint32_t(key); }

// Probability relative to the most probable token's.
__device__ __forceinline__ double weight_of(uint64_t key, double max, double temperature) {
    return exp((double(score_of(key)) - max) / temperature);
}

// The first of `n` ascending ids that is not below `id`.
__device__ __forceinline__ int lower_bound(const uint32_t *ids, int n, uint32_t id) {
    int first = 0;
    while (first < n) {
        const int middle = (first + n) / 2;
        if (ids[middle] < id) first = middle + 1;
        else n = middle;
    }
    return first;
}

template <int N> __device__ __forceinline__ double sum_of_block(double x, double *shared) {
    for (int by = 16; by > 0; by /= 2) x += __shfl_xor_sync(ALL_LANES, x, by);
    __syncthreads();  // `shared` may still be read
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = shared[0];
    for (int i = 1; i < N / 32; i++) x += shared[i];
    return x;
}
template <int N> __device__ __forceinline__ uint64_t max_of_block(uint64_t x, uint64_t *shared) {
    for (int by = 16; by > 0; by /= 2) {
        const uint64_t other = __shfl_xor_sync(ALL_LANES, x, by);
        x = other > x ? other : x;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = shared[0];
    for (int i = 1; i < N / 32; i++) x = shared[i] > x ? shared[i] : x;
    return x;
}

// Of chunk blockIdx.x of row blockIdx.y: penalties, bias and mask; then the keys in descending
// order, or, where the largest is all that is wanted, that alone. `of_chunk` is, for the
// log-probability, the largest logit and the sum of e^(logit - largest), of the logits as they
// came; NaN when one is no number.
extern "C" __global__ void __launch_bounds__(SORT_THREADS)
    sample_sort(uint64_t *__restrict__ keys, double *__restrict__ of_chunk,
                const float *__restrict__ logits, const Row *__restrict__ rows,
                const uint32_t *__restrict__ words, int vocab) {
    __shared__ float scores[CHUNK];
    __shared__ uint64_t sorted[CHUNK];
    __shared__ double sums[SORT_THREADS / 32];
    __shared__ uint64_t maxima[SORT_THREADS / 32];
    const Row row = rows[blockIdx.y];
    const int first = blockIdx.x * CHUNK, n = ::min(CHUNK, vocab - first), tid = threadIdx.x;
    logits += size_t(blockIdx.y) * vocab + first;

    uint64_t largest = 0;
    bool finite = true;
    for (int i = tid; i < n; i += SORT_THREADS) {
        scores[i] = logits[i];
        finite = finite && fabsf(logits[i]) < INFINITY;
        const uint64_t key = sort_key(logits[i], first + i);
        largest = key > largest ? key : largest;
    }
    const double max = score_of(max_of_block<SORT_THREADS>(largest, maxima));
    double sum = finite ? 0 : NAN;
    for (int i = tid; i < n; i += SORT_THREADS) sum += exp(double(logits[i]) - max);
    sum = sum_of_block<SORT_THREADS>(sum, sums);
    const size_t chunk = size_t(blockIdx.y) * gridDim.x + blockIdx.x;
    if (tid == 0) of_chunk[2 * chunk] = max, of_chunk[2 * chunk + 1] = sum;
    // The barriers of the sums stand between the scores and what changes them.

    // Rounded after every operation, as on a CPU: a fused one could change which of two scores is
    // larger.
    const uint32_t *ids = words + row.seen_first;
    const int seen_end = lower_bound(ids, row.seen_count, first + n);
    for (int i = lower_bound(ids, row.seen_count, first) + tid; i < seen_end; i += SORT_THREADS) {
        float score = scores[ids[i] - first];
        score = score > 0 ? score / row.repetition : score * row.repetition;
        const uint32_t count = ids[row.seen_count + i];
        if (count > 0)
            score =
                __fadd_rn(score, -__fadd_rn(row.presence, __fmul_rn(row.frequency, float(count))));
        scores[ids[i] - first] = score;
    }
    __syncthreads();
    ids = words + row.bias_first;
    const int bias_end = lower_bound(ids, row.bias_count, first + n);
    for (int i = lower_bound(ids, row.bias_count, first) + tid; i < bias_end; i += SORT_THREADS)
        scores[ids[i] - first] += __uint_as_float(ids[row.bias_count + i]);
    __syncthreads();

    largest = 0;
    for (int i = tid; i < CHUNK; i += SORT_THREADS) {
        uint64_t key = 0;  // behind the vocabulary: below every score
        if (i < n) {
            // A penalty may push a finite logit past the largest float.
            float score = fminf(fmaxf(scores[i], -3.402823466e38f), 3.402823466e38f);
            const uint32_t word = (first + i) / 32;
            if (row.is_masked
                && !(word < row.mask_words && words[row.mask_first + word] >> (first + i) % 32 & 1))
                score = -INFINITY;
            key = sort_key(score, first + i);
        }
        sorted[i] = key;
        largest = key > largest ? key : largest;
    }
    keys += chunk * CHUNK;
    if (row.temperature == 0) {
        largest = max_of_block<SORT_THREADS>(largest, maxima);
        if (tid == 0) keys[0] = largest;
        return;
    }
    // Bitonic: runs of `size` become sorted, every other one the other way round.
    for (int size = 2; size <= CHUNK; size *= 2)
        for (int apart = size / 2; apart > 0; apart /= 2) {
            __syncthreads();
            for (int i = tid; i < CHUNK / 2; i += SORT_THREADS) {
                const int a = i / apart * 2 * apart + i % apart, b = a + apart;
                const uint64_t x = sorted[a], y = sorted[b];
                if ((x < y) == ((a & size) == 0)) sorted[a] = y, sorted[b] = x;
            }
        }
    __syncthreads();
    for (int i = tid; i < CHUNK; i += SORT_THREADS) keys[i] = sorted[i];
}

// The largest key of a row: its chunks begin with theirs.
template <int N> __device__ __forceinline__ uint64_t largest_key(const uint64_t *keys, int chunks,
                                                                 uint64_t *shared) {
    uint64_t largest = 0;
    for (int i = threadIdx.x; i < chunks; i += N) {
        const uint64_t key = keys[size_t(i) * CHUNK];
        largest = key > largest ? key : largest;
    }
    return max_of_block<N>(largest, shared);
}

// Running sums of the weights of a sorted chunk.
extern "C" __global__ void __launch_bounds__(SORT_THREADS)
    sample_weigh(double *__restrict__ sums, const uint64_t *__restrict__ keys,
                 const Row *__restrict__ rows, int vocab) {
    __shared__ double of_warp[SORT_THREADS / 32];
    __shared__ uint64_t maxima[SORT_THREADS / 32];
    const double temperature = rows[blockIdx.y].temperature;
    if (temperature == 0) return;
    const size_t chunk = size_t(blockIdx.y) * gridDim.x + blockIdx.x;
    const int n = ::min(CHUNK, vocab - int(blockIdx.x) * CHUNK), lane = threadIdx.x % 32;
    const uint64_t *of_row = keys + size_t(blockIdx.y) * gridDim.x * CHUNK;
    const double max = score_of(largest_key<SORT_THREADS>(of_row, gridDim.x, maxima));
    double running[EACH], sum = 0;
    for (int i = 0; i < EACH; i++) {
        const int at = threadIdx.x * EACH + i;
        const uint64_t key = keys[chunk * CHUNK + at];
        // Nothing weighs anything when the mask excludes everything.
        if (at < n && score_of(key) != -INFINITY) sum += weight_of(key, max, temperature);
        running[i] = sum;
    }
    double before = sum;
    for (int by = 1; by < 32; by *= 2) {
        const double other = __shfl_up_sync(ALL_LANES, before, by);
        if (lane >= by) before += other;
    }
    if (lane == 31) of_warp[threadIdx.x / 32] = before;
    before = __shfl_up_sync(ALL_LANES, before, 1);
    if (lane == 0) before = 0;
    __syncthreads();
    for (unsigned i = 0; i < threadIdx.x / 32; i++) before += of_warp[i];
    for (int i = 0; i < EACH; i++)
        sums[chunk * CHUNK + threadIdx.x * EACH + i] = before + running[i];
}

// Sorted chunks, each with how many of its tokens are left. A thread has every 128th: LISTS of them
// at most.
constexpr int LISTS = 8;
struct Lists {
    const uint64_t *keys;
    const double *sums;
    int chunks, left[LISTS];
    uint64_t *shared_max;
    double *shared_sum;

    __device__ __forceinline__ int chunk(int list) const {
        return list * PICK_THREADS + threadIdx.x;
    }

    // How many of positions first .. end of a chunk hold keys of at least `key`, and those before
    // first.
    __device__ __forceinline__ int not_below(int chunk, int first, int end, uint64_t key) const {
        while (first < end) {
            const int middle = (first + end) / 2;
            if (keys[size_t(chunk) * CHUNK + middle] >= key) first = middle + 1;
            else end = middle;
        }
        return first;
    }

    // Sum of the weights of the first counts[i] of each list, or their number.
    __device__ __forceinline__ double total(const int (&counts)[LISTS], bool weighed) const {
        double sum = 0;
        for (int i = 0; i < LISTS && chunk(i) < chunks; i++)
            if (counts[i] > 0)
                sum += weighed ? sums[size_t(chunk(i)) * CHUNK + counts[i] - 1] : double(counts[i]);
        return sum_of_block<PICK_THREADS>(sum, shared_sum);
    }

    // The largest key, of those that are left, such that the keys not below it add up to `target`,
    // or to more than it. Every round takes the middle of the longest range that is still open.
    __device__ __forceinline__ uint64_t reach(double target, bool weighed, bool more) const {
        int first[LISTS], end[LISTS];
        for (int i = 0; i < LISTS; i++) first[i] = 0, end[i] = left[i];
        uint64_t reached = 0;
        while (true) {
            uint64_t longest = 0;
            for (int i = 0; i < LISTS && chunk(i) < chunks; i++) {
                const uint64_t range = uint64_t(end[i] - first[i]) << 32 | unsigned(chunk(i)) << 12
                                       | (first[i] + end[i]) / 2;
                if (end[i] > first[i] && range > longest) longest = range;
            }
            longest = max_of_block<PICK_THREADS>(longest, shared_max);
            if (longest == 0) return reached;
            const int owner = uint32_t(longest) >> 12, middle = longest & 0xfff;
            const uint64_t pivot = keys[size_t(owner) * CHUNK + middle];
            int counts[LISTS];
            for (int i = 0; i < LISTS && chunk(i) < chunks; i++)
                counts[i] =
                    chunk(i) == owner ? middle + 1 : not_below(chunk(i), first[i], end[i], pivot);
            const double sum = total(counts, weighed);
            const bool is_reached = more ? sum > target : sum >= target;
            if (is_reached) reached = pivot;
            for (int i = 0; i < LISTS && chunk(i) < chunks; i++) {
                if (is_reached) end[i] = counts[i] - (chunk(i) == owner);
                else first[i] = counts[i];
            }
        }
    }

    // Leaves the keys not below `key`.
    __device__ __forceinline__ void cut(uint64_t key) {
        for (int i = 0; i < LISTS && chunk(i) < chunks; i++)
            left[i] = not_below(chunk(i), 0, left[i], key);
    }
};

// The token of row blockIdx.x and the logarithm of its probability under the logits as they came.
extern "C" __global__ void __launch_bounds__(PICK_THREADS)
    sample_pick(uint32_t *__restrict__ tokens, float *__restrict__ logprobs,
                const uint64_t *__restrict__ keys, const double *__restrict__ sums,
                const double *__restrict__ of_chunk, const float *__restrict__ logits,
                const Row *__restrict__ rows, int vocab, int chunks) {
    __shared__ double shared_sum[PICK_THREADS / 32];
    __shared__ uint64_t shared_max[PICK_THREADS / 32];
    const size_t row_index = blockIdx.x;
    const Row row = rows[row_index];
    Lists lists = {keys + row_index * chunks * CHUNK,
                   sums + row_index * chunks * CHUNK,
                   chunks,
                   {},
                   shared_max,
                   shared_sum};
    of_chunk += 2 * row_index * chunks;

    // ln of the sum of e^logit, from those of the chunks.
    uint64_t largest_logit = 0;
    for (int i = threadIdx.x; i < chunks; i += PICK_THREADS) {
        const uint64_t key = sort_key(float(of_chunk[2 * i]), 0);
        largest_logit = key > largest_logit ? key : largest_logit;
    }
    const double max_logit = score_of(max_of_block<PICK_THREADS>(largest_logit, shared_max));
    double sum = 0;
    for (int i = threadIdx.x; i < chunks; i += PICK_THREADS)
        sum += of_chunk[2 * i + 1] * exp(of_chunk[2 * i] - max_logit);
    sum = sum_of_block<PICK_THREADS>(sum, shared_sum);

    const uint64_t largest = largest_key<PICK_THREADS>(lists.keys, chunks, shared_max);
    uint64_t token = largest;
    if (row.temperature != 0 && sum == sum && score_of(largest) != -INFINITY) {
        for (int i = 0; i < LISTS && lists.chunk(i) < chunks; i++)
            lists.left[i] = ::min(CHUNK, vocab - lists.chunk(i) * CHUNK);
        if (row.top_k > 0 && row.top_k < unsigned(vocab))
            lists.cut(lists.reach(row.top_k, false, false));
        if (row.top_p < 1)
            lists.cut(lists.reach(row.top_p * lists.total(lists.left, true), true, false));
        const double max = score_of(largest);
        for (int i = 0; i < LISTS && lists.chunk(i) < chunks; i++) {
            // Weights fall with the keys: what is probable enough comes first.
            int first = 0, end = lists.left[i];
            while (first < end) {
                const int middle = (first + end) / 2;
                const uint64_t key = lists.keys[size_t(lists.chunk(i)) * CHUNK + middle];
                const bool stays =
                    score_of(key) != -INFINITY && weight_of(key, max, row.temperature) >= row.min_p;
                if (stays) first = middle + 1;
                else end = middle;
            }
            lists.left[i] = first;
        }
        token = lists.reach(row.uniform * lists.total(lists.left, true), true, true);
        if (token == 0)
            token = largest;  // should rounding keep the sum of all from exceeding a part
    }
    if (threadIdx.x == 0) {
        const bool is_finite = sum == sum, is_some = score_of(largest) != -INFINITY;
        tokens[row_index] = !is_finite ? NOT_FINITE : !is_some ? NOTHING_LEFT : id_of(token);
        const bool is_token = is_finite && is_some;
        logprobs[row_index] =
            is_token ? float(logits[row_index * vocab + id_of(token)] - (max_logit + log(sum)))
                     : NAN;
    }
}
