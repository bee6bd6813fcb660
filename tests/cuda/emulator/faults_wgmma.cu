// Products of a warpgroup, with planted faults and without. Only the emulator has seen this file: the
// functions are those of wgmma.cuh, which its twins stand for.

#include "async.cuh"

enum Fault {
    NONE,
    NO_FENCE,
    NO_COMMIT,
    NO_WAIT,
    READ_BEFORE_WAIT,
    SETTLED_BEFORE_WAIT,
    A_REWRITTEN,
    SUMS_REWRITTEN,
    B_REUSED,
    NO_PROXY_FENCE,
    WRONG_SWIZZLE,
    WRONG_DESCRIPTOR,
    LANES_DIFFER,
    WARPS_DIFFER,
    ONE_WARP_LESS,
    HALF_A_WARP,
    UNALIGNED,
};

// d = a · b with a [64, 64] row-major, b [columns, 64] in bf16 and d [64, columns]: four products in two
// groups, the second begun while the first is under way.
template <int N>
__device__ __forceinline__ void multiply(float *out, const uint16_t *a, const uint16_t *b, int fault) {
    DYNAMIC_SHARED(memory);
    const uint32_t columns = shared_address(memory) + (fault == UNALIGNED ? 512 : 0);
    const int t = threadIdx.x, lane = t % 32, g = lane / 4, q = lane % 4, row = t / 32 * 16 + g;
    for (int i = t; i < N * 8; i += 128) {
        const int n = i / 8, piece = fault == WRONG_SWIZZLE ? i % 8 : (i ^ n) % 8;
        store_shared128(columns + n * 128 + piece * 16, *reinterpret_cast<const uint4 *>(b + n * 64 + i % 8 * 8));
    }
    if (fault != NO_PROXY_FENCE) proxy_fence();
    __syncthreads();
    float d[N / 2] = {};
    uint32_t of_a[4][4];
    uint64_t descriptor = uint64_t(1) << 62 | uint64_t(1024 / 16) << 32 | 1 << 16 | (columns >> 4 & 0x3fff);
    if (fault == WRONG_DESCRIPTOR) descriptor ^= uint64_t(1) << 62;
    if (fault == LANES_DIFFER && lane == 3) descriptor += 2;
    if (fault == WARPS_DIFFER && t / 32 == 2) descriptor += 2;
    if (fault == ONE_WARP_LESS && t / 32 == 2) return;
    if (fault == HALF_A_WARP && lane >= 16) return;
    for (int k = 0; k < 4; k++) {
        for (int i = 0; i < 4; i++)
            memcpy(&of_a[k][i], a + (row + i % 2 * 8) * 64 + k * 16 + i / 2 * 8 + 2 * q, 4);
        if (k % 2 == 0 && (fault != NO_FENCE || k == 0)) wgmma_fence();
        wgmma_bf16<N>(d, of_a[k], descriptor + 2 * k);
        if (fault == A_REWRITTEN && k == 2) of_a[0][1] = 0;
        if (k == 1 || (k == 3 && fault != NO_COMMIT)) wgmma_commit();
        if (k == 3) wgmma_wait<1>();
    }
    if (fault == SUMS_REWRITTEN) d[1] += 1;
    if (fault == B_REUSED) {
        store_shared32(columns, 0x3f803f80);
        proxy_fence();
    }
    if (fault == SETTLED_BEFORE_WAIT) wgmma_settle(d);
    const float early = d[0];
    if (fault != NO_WAIT) {
        wgmma_wait<0>();
        wgmma_settle(d);
    }
    if (fault == READ_BEFORE_WAIT) d[0] = early;
    for (int i = 0; i < N / 2; i++) out[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + 2 * q + i % 2] = d[i];
}

extern "C" __global__ void multiply_32(float *out, const uint16_t *a, const uint16_t *b, int fault) {
    multiply<32>(out, a, b, fault);
}
extern "C" __global__ void multiply_160(float *out, const uint16_t *a, const uint16_t *b, int fault) {
    multiply<160>(out, a, b, fault);
}

// Three warpgroups whose registers are more than there are, or just enough.
extern "C" __global__ void registers(int fault) {
    if (threadIdx.x >= 256) {
        fewer_registers<24>();
    } else if (fault) {
        more_registers<248>();
    } else {
        more_registers<240>();
    }
}

extern "C" __global__ void half_a_warp_multiplies() {
    float d[4] = {};
    const uint32_t zeros[4] = {};
    if (threadIdx.x < 16) mma_bf16(d, zeros, {0, 0});
}
