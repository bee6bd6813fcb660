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
    const bool finite = (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
    uint16_t hi = f32_to_bf16(x);
    hi -= finite && (hi & 0x7f80) == 0x7f80;
    return {hi, f32_to_bf16(finite ? x - bf16_to_f32(hi) : 0.0f)};
}

// The parts of two numbers as words, `low` in the low halves.
__device__ __forceinline__ void split_bf16x2(uint32_t &hi, uint32_t &lo, float low, float high) {
    const Bf16Parts a = split_bf16(low), b = split_bf16(high);
    hi = a.hi | uint32_t(b.hi) << 16, lo = a.lo | uint32_t(b.lo) << 16;
}

// The same of eight numbers, without a branch for each.
__device__ __forceinline__ void split_bf16x8(uint4 &hi, uint4 &lo, const float4 &a,
                                             const float4 &b) {
    const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    uint32_t h[4], l[4], large = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        h[i] = f32_to_bf16x2(v[2 * i], v[2 * i + 1]);
        const float2 rounded = bf16x2_to_f32(h[i]);
        l[i] = f32_to_bf16x2(v[2 * i] - rounded.x, v[2 * i + 1] - rounded.y);
        // The upper bits of the halves: whether an exponent is the largest.
        large |= (h[i] & 0x7f807f80u) + 0x00800080u;
    }
    if (large & 0x80008000u) {
#pragma unroll
        for (int i = 0; i < 4; i++) split_bf16x2(h[i], l[i], v[2 * i], v[2 * i + 1]);
    }
    hi = make_uint4(h[0], h[1], h[2], h[3]), lo = make_uint4(l[0], l[1], l[2], l[3]);
}
