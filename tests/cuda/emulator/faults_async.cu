// Pipelines of copies that arrive late, with planted faults and without.

#include "async.cuh"

enum Fault {
    NONE,
    WRONG_PHASE,
    NO_WAIT,
    REUSED_EARLY,
    TOO_MANY_ARRIVALS,
    NOBODY_ARRIVES,
    NOBODY_WAITS,
    MISALIGNED,
    BEYOND_THE_SOURCE,
    FEWER_BYTES_EXPECTED,
    MORE_BYTES_EXPECTED,
    NO_BARRIER,
    BARRIER_OVERWRITTEN,
    BARRIER_AGAIN,
    NO_PARITY,
    NO_FENCE,
    POLLED,
    COPIED_TWICE,
};

// out[t] = the sum of x[tile · 96 + t]: one warp copies tiles of 96 values into two stages, three add.
extern "C" __global__ void pipeline(const float *x, float *out, int tiles, int fault) {
    constexpr uint32_t BYTES = 96 * 4, STAGES = 2;
    DYNAMIC_SHARED(memory);
    const uint32_t stages = shared_address(memory), barriers = stages + STAGES * BYTES;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (uint32_t s = 0; s < STAGES; s++) {
            if (fault != NO_BARRIER) barrier_init(barriers + 16 * s, 1);
            barrier_init(barriers + 16 * s + 8, 3);
        }
        if (fault == BARRIER_AGAIN) barrier_init(barriers, 1);
        if (fault == BARRIER_OVERWRITTEN) memory[STAGES * BYTES + 1] = 1;
        barrier_init_fence();
    }
    __syncthreads();
    uint32_t stage = 0, phase = 0;
    if (warp == 3) {
        if (lane != 0) return;
        for (int tile = 0; tile < tiles; tile++) {
            const uint32_t full = barriers + 16 * stage;
            if (fault != REUSED_EARLY) barrier_wait(full + 8, phase ^ 1);
            uint32_t expected = BYTES;
            if (fault == FEWER_BYTES_EXPECTED) expected -= 16;
            if (fault == MORE_BYTES_EXPECTED) expected += 16;
            if (fault == NO_FENCE) store_shared32(stages + stage * BYTES, 0);
            if (fault == COPIED_TWICE) expected *= 2;
            barrier_expect(full, expected);
            if (fault == COPIED_TWICE) bulk_copy(stages + stage * BYTES, x, BYTES, full);
            const int off = fault == MISALIGNED ? 1 : fault == BEYOND_THE_SOURCE ? 4 : 0;
            bulk_copy(stages + stage * BYTES, x + tile * 96 + off, BYTES, full, evict_first());
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
        if (fault == NOBODY_WAITS) {
            barrier_wait(barriers + 16 * stage + 8, phase ^ 1);
            barrier_expect(barriers + 16 * stage, 16);
            bulk_copy(stages + stage * BYTES, x, 16, barriers + 16 * stage);
        }
        return;
    }
    float sum = 0;
    for (int tile = 0; tile < tiles; tile++) {
        const uint32_t full = barriers + 16 * stage;
        if (fault == POLLED) {
            while (!barrier_try(full, phase)) {}
        } else if (fault != NO_WAIT) {
            barrier_wait(full, fault == WRONG_PHASE ? phase ^ 1 : fault == NO_PARITY ? 2 : phase);
        }
        sum += __uint_as_float(load_shared32(stages + stage * BYTES + 4 * threadIdx.x));
        __syncwarp();
        if ((lane == 0 && fault != NOBODY_ARRIVES) || fault == TOO_MANY_ARRIVALS) barrier_arrive(full + 8);
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    out[threadIdx.x] = sum;
}

// What one thread finds before a copy of 16 bytes has arrived, and after.
extern "C" __global__ void before_and_after(const float *x, float *out) {
    __shared__ __align__(16) float values[4];
    __shared__ uint64_t barrier;
    const uint32_t to = shared_address(values), arrived = shared_address(&barrier);
    for (int i = 0; i < 4; i++) values[i] = 0;
    barrier_init(arrived, 1);
    proxy_fence();
    barrier_expect(arrived, 16);
    bulk_copy(to, x, 16, arrived);
    out[0] = __uint_as_float(load_shared32(to));
    barrier_wait(arrived, 0);
    out[1] = __uint_as_float(load_shared32(to));
}

// out = x, twice 32 · 4 values by 16 bytes each, in two groups.
extern "C" __global__ void copies_of_16(const float *x, float *out, int wait, int misaligned) {
    __shared__ __align__(16) float values[2][128];
    __shared__ uint64_t barrier;
    const uint32_t at = shared_address(values) + 16 * threadIdx.x, arrived = shared_address(&barrier);
    if (threadIdx.x == 0) barrier_init(arrived, 32);
    __syncthreads();
    for (int i = 0; i < 2; i++) {
        async_copy16(at + 512 * i + 8 * misaligned, x + 128 * i + 4 * threadIdx.x);
        async_commit();
    }
    if (wait == 1) async_wait<1>();
    if (wait == 2) async_wait<0>();
    if (wait == 3 || wait == 4) async_arrive(arrived);
    if (wait == 3) barrier_wait(arrived, 0);
    __syncthreads();
    for (int i = 0; i < 8; i++) out[i * 32 + threadIdx.x] = values[i / 4][i % 4 * 32 + threadIdx.x];
    __syncthreads();
    if (wait == 5) async_wait<0>();
}

// Of `bytes` of dynamic memory the poison, what was written, and what lies at byte `at`.
extern "C" __global__ void dynamic(uint32_t *out, int bytes, int at, int by_address, int write) {
    DYNAMIC_SHARED(memory);
    const int t = threadIdx.x;
    auto *words = reinterpret_cast<uint32_t *>(memory);
    if (t == 0) out[0] = words[bytes / 4 - 1], out[1] = shared_address(memory) % 1024;
    __syncthreads();
    words[t] = t;
    __syncthreads();
    out[2 + t] = load_shared32(shared_address(memory) + 4 * (31 - t));
    if (t != 0) return;
    if (write) memory[at] = 1;
    else if (by_address) out[0] = load_shared32(shared_address(memory) + at);
    else out[0] = words[at / 4];
}

extern "C" __global__ void traps(long long *out) {
    out[0] = clock64();
    out[1] = clock64();
    if (out[0] < out[1]) __trap();
}
