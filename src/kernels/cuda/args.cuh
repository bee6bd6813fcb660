// What the kernels share: number formats, wide loads, sums over a warp and a block, products on tensor
// cores. Everything a .cu includes comes through here.
//
// The sources also run on a CPU, under tests/cuda/emulator, which offers what the headers below do.
// Inline PTX has no meaning there: it stands behind `#if defined(__CUDACC__)` with a plain twin.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <math_constants.h>
#include <stdint.h>
#endif

#define ALL_LANES 0xffffffffu

// Threads of a block where a kernel does not say otherwise. Fixed, so that sums have one order.
constexpr int THREADS = 256;

__device__ __forceinline__ float quiet_nan() { return __uint_as_float(0x7fc00000u); }

// ---- number formats, as raw bits ----

__device__ __forceinline__ float bf16_to_f32(uint16_t bits) {
    return __uint_as_float(uint32_t(bits) << 16);
}

// The two bf16 of a word, low half first.
__device__ __forceinline__ float2 bf16x2_to_f32(uint32_t bits) {
    return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}

// The two f16 of a word, and a word of two.
__device__ __forceinline__ float2 f16x2_to_f32(uint32_t bits) {
    __half2 both;
    memcpy(&both, &bits, sizeof bits);
    return __half22float2(both);
}
__device__ __forceinline__ uint32_t f32_to_f16x2(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &both, sizeof bits);
    return bits;
}

// To nearest even; NaN stays NaN.
__device__ __forceinline__ uint16_t f32_to_bf16(float x) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

__device__ __forceinline__ uint32_t f32_to_bf16x2(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &both, sizeof bits);
    return bits;
}

// 2^(code - 127); 255 is NaN.
__device__ __forceinline__ float e8m0_to_f32(uint32_t code) {
    if (code == 255) return quiet_nan();
    return __uint_as_float(code == 0 ? 0x00400000u : code << 23);
}

// The two E4M3 of a half word, low byte first. Exact: every code is a half.
__device__ __forceinline__ float2 e4m3x2_to_f32(uint16_t codes) {
    return __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(codes, __NV_E4M3)));
}

// To nearest even, magnitudes above 448 to 448. NaN has no sign here, nor in any arithmetic of a device.
__device__ __forceinline__ uint8_t f32_to_e4m3(float x) {
    return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}

// ---- wide loads ----

// Whether 16 bytes may be read or written at once.
__device__ __forceinline__ bool aligned16(const void *p) {
    return (reinterpret_cast<uintptr_t>(p) & 15) == 0;
}

// Elements i .. i + 4 of a row of n, zeros behind its end. `wide`: n is a multiple of 4, p aligned.
__device__ __forceinline__ float4 load4(const float *p, int i, int n, bool wide) {
    if (wide) return *reinterpret_cast<const float4 *>(p + i);
    return make_float4(p[i], i + 1 < n ? p[i + 1] : 0.0f, i + 2 < n ? p[i + 2] : 0.0f,
                       i + 3 < n ? p[i + 3] : 0.0f);
}

__device__ __forceinline__ void store4(float *p, int i, int n, bool wide, float4 v) {
    if (wide) {
        *reinterpret_cast<float4 *>(p + i) = v;
        return;
    }
    p[i] = v.x;
    if (i + 1 < n) p[i + 1] = v.y;
    if (i + 2 < n) p[i + 2] = v.z;
    if (i + 3 < n) p[i + 3] = v.w;
}

// ---- sums over a warp and a block: the same order on every call, the result in every thread ----

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int by = 16; by > 0; by /= 2) v += __shfl_xor_sync(ALL_LANES, v, by);
    return v;
}

// NaN does not win: fmaxf drops it.
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int by = 16; by > 0; by /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, by));
    return v;
}

// Over a block of N threads, a multiple of 32. `shared` holds N / 32 values and is free again when the
// next barrier of the block is passed.
template <int N> __device__ __forceinline__ float block_sum(float v, float *shared) {
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = shared[0];
#pragma unroll
    for (int i = 1; i < N / 32; i++) sum += shared[i];
    return sum;
}

// ---- tensor cores ----

// d += a · b on one warp: a is 16×16 and b 16×8 in bf16 or f16, d 16×8 in f32 (mma.sync.m16n8k16, PTX
// ISA "Matrix fragments for mma.m16n8k16"). With g = lane / 4 and c = lane % 4 * 2 a lane holds, low
// half first:
//   a[0]: row g, columns c, c+1    a[1]: row g+8, the same    a[2], a[3]: as these, columns c+8, c+9
//   b[0]: rows c, c+1 of column g  b[1]: rows c+8, c+9
//   d[0], d[1]: row g, columns c, c+1      d[2], d[3]: row g+8
// All lanes of the warp take part.
#if defined(__CUDACC__)
#define MMA(type)                                                                                  \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                    \
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                           \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#endif

__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
    MMA("bf16");
#else
    emulator::mma(d, a, b, emulator::Format::bf16);
#endif
}

__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
    MMA("f16");
#else
    emulator::mma(d, a, b, emulator::Format::f16);
#endif
}
