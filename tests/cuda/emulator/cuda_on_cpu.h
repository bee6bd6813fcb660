// What CUDA C++ offers to a kernel, for g++: keywords, indices, barriers, warp operations, atomics and
// arithmetic. Included before a .cu file, which then runs on the fibers of fibers.h.
//
// Not here, and so behind `#if defined(__CUDACC__)` in a kernel: inline PTX. The twins of async.cuh, which
// has most of it, are in async.h.
#pragma once
#include "fibers.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static
// A section of its own, so that a block finds it poisoned.
#define __shared__ static __attribute__((section(EMULATOR_SHARED)))
// build.sh lists the kernels of a source by what the preprocessor leaves of this.
#if !defined(EMULATOR_LIST)
#define __global__
#endif

#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::block.index)
#define blockDim (emulator::block.size)
#define gridDim (emulator::block.grid)
#define warpSize 32

#define __syncthreads() ((void)emulator::sync_block(__LINE__, false))
#define __syncthreads_count(p) int(emulator::sync_block(__LINE__, (p) != 0))
#define __syncthreads_or(p) int(emulator::sync_block(__LINE__, (p) != 0) != 0)
#define __syncthreads_and(p) int(emulator::sync_block(__LINE__, (p) == 0) == 0)

inline void __syncwarp(uint32_t mask = ~0u) {
    emulator::collect(emulator::Collective::barrier, mask, 0, 0);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace emulator {
template <class T> T shuffle(uint32_t mask, T value, int from) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = collect(Collective::shuffle, mask, bits, from);
    memcpy(&value, &bits, sizeof(T));
    return value;
}
// The first lane of this lane's segment of `width` lanes.
inline int segment(int width) { return int(lane()) & ~(width - 1); }
}  // namespace emulator

template <class T> T __shfl_sync(uint32_t mask, T v, int from, int width = 32) {
    return emulator::shuffle(mask, v, emulator::segment(width) + (from & (width - 1)));
}
template <class T> T __shfl_xor_sync(uint32_t mask, T v, int bits, int width = 32) {
    const int from = int(emulator::lane()) ^ bits;
    return emulator::shuffle(mask, v, from < emulator::segment(width) + width ? from
                                                                              : int(emulator::lane()));
}
template <class T> T __shfl_down_sync(uint32_t mask, T v, unsigned by, int width = 32) {
    const int from = int(emulator::lane() + by);
    return emulator::shuffle(mask, v, from < emulator::segment(width) + width ? from
                                                                              : int(emulator::lane()));
}
template <class T> T __shfl_up_sync(uint32_t mask, T v, unsigned by, int width = 32) {
    const int from = int(emulator::lane()) - int(by);
    return emulator::shuffle(mask, v, from >= emulator::segment(width) ? from : int(emulator::lane()));
}
inline unsigned __ballot_sync(uint32_t mask, int p) {
    return unsigned(emulator::collect(emulator::Collective::ballot, mask, p != 0, 0));
}
template <class T> unsigned __match_any_sync(uint32_t mask, T v) {
    unsigned same = 0;
    for (int i = 0; i < int(emulator::WARP); i++)
        if (mask >> i & 1) same |= unsigned(emulator::shuffle(mask, v, i) == v) << i;
    return same;
}
inline int __any_sync(uint32_t mask, int p) { return __ballot_sync(mask, p) != 0; }
inline int __all_sync(uint32_t mask, int p) { return __ballot_sync(mask, !p) == 0; }

// One thread runs at a time, so plain memory is atomic.
template <class T> T atomicAdd(T *p, std::common_type_t<T> v) { T old = *p; *p = old + v; return old; }
template <class T> T atomicSub(T *p, std::common_type_t<T> v) { T old = *p; *p = old - v; return old; }
template <class T> T atomicMax(T *p, std::common_type_t<T> v) { T old = *p; if (v > old) *p = v; return old; }
template <class T> T atomicMin(T *p, std::common_type_t<T> v) { T old = *p; if (v < old) *p = v; return old; }
template <class T> T atomicOr(T *p, std::common_type_t<T> v) { T old = *p; *p = old | v; return old; }
template <class T> T atomicExch(T *p, std::common_type_t<T> v) { T old = *p; *p = v; return old; }
template <class T> T atomicCAS(T *p, std::common_type_t<T> expected, std::common_type_t<T> v) {
    T old = *p;
    if (old == expected) *p = v;
    return old;
}

template <class T> T __ldg(const T *p) { return *p; }
template <class T> T __ldcg(const T *p) { return *p; }
template <class T> T __ldcs(const T *p) { return *p; }
template <class T> void __stcs(T *p, std::common_type_t<T> v) { *p = v; }
template <class T> void __stcg(T *p, std::common_type_t<T> v) { *p = v; }

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline uint32_t __float_as_uint(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
inline int __float_as_int(float f) { return int(__float_as_uint(f)); }
inline float __uint_as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
inline float __int_as_float(int i) { return __uint_as_float(uint32_t(i)); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = uint64_t(b) << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t s = selector >> 4 * i & 15;
        uint32_t byte = uint32_t(bytes >> 8 * (s & 7)) & 0xff;
        if (s & 8) byte = byte & 0x80 ? 0xff : 0;
        out |= byte << 8 * i;
    }
    return out;
}

using std::max;
using std::min;
inline float rsqrtf(float x) { return float(1.0 / std::sqrt(double(x))); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
// A device's arithmetic returns one NaN, without sign or payload. Named operations do so here; plain ones
// are the CPU's, whose NaN is that of an operand: nothing may depend on its bits.
inline float of_arithmetic(float x) { return x == x ? x : __uint_as_float(0x7fffffff); }
inline float __fadd_rn(float a, float b) { return of_arithmetic(a + b); }
inline float __fmul_rn(float a, float b) { return of_arithmetic(a * b); }
inline float __fdiv_rn(float a, float b) { return of_arithmetic(a / b); }
inline float __fmaf_rn(float a, float b, float c) { return of_arithmetic(fmaf(a, b, c)); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
inline float __int2float_rn(int x) { return float(x); }
inline int __float2int_rn(float x) { return int(nearbyintf(x)); }
#define __builtin_assume(x) ((void)0)

// Time goes by when somebody looks.
inline long long clock64() { static long long now = 0; return now += 64; }
[[noreturn]] inline void __trap() { emulator::fail("the kernel trapped"); }

#include "async.h"
#include "formats.h"
#include "tensor.h"
#include "wgmma.h"
