// What the products of matrices share: weights that are read once, many sums over one warp,
// activations in two parts for tensor cores.
#pragma once
#include "args.cuh"

// 16 bytes that nobody reads again: they pass the first cache, which is left to the activations.
__device__ __forceinline__ uint4 load_once(const uint4 *p) {
#if defined(__CUDACC__)
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p));
    return v;
#else
    return *p;
#endif
}

__device__ __forceinline__ uint2 load_once(const uint2 *p) {
#if defined(__CUDACC__)
    uint2 v;
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
#else
    return *p;
#endif
}

// N sums over the warp, N a power of two up to 32: lane l gets the sum of v[l / (32 / N)] of all
// lanes. While more than one is left, a lane hands half of them to its partner: N − 1 shuffles and
// a few, not 5·N. Every sum is added in the order of warp_sum, whatever N and its place.
template <int N> __device__ __forceinline__ float warp_sums(float (&v)[N]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int by = 16, n = N; by > 0; by /= 2) {
        n /= 2;
        if (n == 0) {
            v[0] += __shfl_xor_sync(ALL_LANES, v[0], by);
            continue;
        }
        const bool upper = lane & by;
        // A number of turns that the compiler knows, or it leaves a loop over memory.
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            if (i >= n) break;
            const float kept = upper ? v[i + n] : v[i], given = upper ? v[i] : v[i + n];
            v[i] = kept + __shfl_xor_sync(ALL_LANES, given, by);
        }
    }
    return v[0];
}

// x as hi + lo, two bf16: |x − hi − lo| <= 2^-17·|x|. Infinity and NaN are hi alone; a finite x
// that would round to infinity has the largest bf16 as hi.
struct Bf16Parts {
    uint16_t hi, lo;
};
__device__ __forceinline__ Bf16Parts split_bf16(float x) {
    uint16_t hi = f32_to_bf16(x);
    if ((__float_as_uint(x) & 0x7f800000u) == 0x7f800000u) return {hi, 0};
    if ((hi & 0x7f80) == 0x7f80) hi -= 1;
    return {hi, f32_to_bf16(x - bf16_to_f32(hi))};
}

// The parts of two numbers as words, `low` in the low halves.
__device__ __forceinline__ void split_bf16x2(uint32_t &hi, uint32_t &lo, float low, float high) {
    const Bf16Parts a = split_bf16(low), b = split_bf16(high);
    hi = a.hi | uint32_t(b.hi) << 16, lo = a.lo | uint32_t(b.lo) << 16;
}
