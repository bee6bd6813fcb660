// Products of a warpgroup, four warps that follow each other, on tensor cores: wgmma of capability
// 9.0 ("PTX ISA: Asynchronous Warpgroup Level Matrix Multiply-Accumulate"). They go on while the
// warps compute: nobody may write a register of theirs, or memory that they read, until wgmma_wait
// says that they are done.
//
// Only code for sm_90a has them. The emulator's twins are in tests/cuda/emulator/wgmma.h.
#pragma once
#include "args.cuh"

// Code for other devices leaves out what uses it.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_WGMMA 0
#else
#define HAS_WGMMA 1
#endif

// B, a column of it after the other: 64 features in 128 bytes, the 16-byte pieces of column n at
// piece ^ n % 8, from `at` on, a multiple of 1,024 bytes. (K-major, 128-byte swizzle, 1,024 bytes
// from eight columns to the next.) The lower word of its descriptor; 16 features further on it is 2
// more, and n bytes further on n / 16.
__device__ __forceinline__ uint32_t wgmma_columns(uint32_t at) { return at >> 4 & 0x3fff; }
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t columns) {
    return uint64_t(1) << 62 | uint64_t(1024 / 16) << 32 | 1 << 16 | columns;
}

#if defined(__CUDACC__)

// The registers of D in the text of the instruction, sixteen by sixteen, and as operands.
#define WGMMA_D0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_D1 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_D2 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_D3 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_D4 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_SIXTEEN(i) WGMMA_FOUR(i), WGMMA_FOUR(i + 4), WGMMA_FOUR(i + 8), WGMMA_FOUR(i + 12)
// `inputs`: of A and the descriptor, in the text.
#define WGMMA(n, registers, inputs, ...)                                                           \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 "                        \
                 "{" registers "}, " inputs ", 1, 1, 1, 0;"                                        \
                 : __VA_ARGS__                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor))

// d += A · B in f32: A is 64 × 16, B is 16 × N in shared memory, both bf16. The lane with g = lane
// / 4 and q = lane % 4 of warp w of the group has
//   a: rows 16w + g and + 8 of features 2q, 2q + 1, then of features 2q + 8, 2q + 9: as mma_bf16's
//   d[4n + i]: of columns 8n + 2q (i even) and 8n + 2q + 1 row 16w + g (i < 2) or 16w + g + 8
template <int N>
__device__ __forceinline__ void wgmma_bf16(float (&d)[N / 2], const uint32_t (&a)[4],
                                           uint64_t descriptor) {
    static_assert(N == 32 || N == 64 || N == 96 || N == 128 || N == 160, "nobody needed it");
    if constexpr (N == 32)
        WGMMA("32", WGMMA_D0, "{%16, %17, %18, %19}, %20", WGMMA_SIXTEEN(0));
    if constexpr (N == 64)
        WGMMA("64", WGMMA_D0 ", " WGMMA_D1, "{%32, %33, %34, %35}, %36", WGMMA_SIXTEEN(0),
              WGMMA_SIXTEEN(16));
    if constexpr (N == 96)
        WGMMA("96", WGMMA_D0 ", " WGMMA_D1 ", " WGMMA_D2, "{%48, %49, %50, %51}, %52",
              WGMMA_SIXTEEN(0), WGMMA_SIXTEEN(16), WGMMA_SIXTEEN(32));
    if constexpr (N == 128)
        WGMMA("128", WGMMA_D0 ", " WGMMA_D1 ", " WGMMA_D2 ", " WGMMA_D3,
              "{%64, %65, %66, %67}, %68", WGMMA_SIXTEEN(0), WGMMA_SIXTEEN(16), WGMMA_SIXTEEN(32),
              WGMMA_SIXTEEN(48));
    if constexpr (N == 160)
        WGMMA("160", WGMMA_D0 ", " WGMMA_D1 ", " WGMMA_D2 ", " WGMMA_D3 ", " WGMMA_D4,
              "{%80, %81, %82, %83}, %84", WGMMA_SIXTEEN(0), WGMMA_SIXTEEN(16), WGMMA_SIXTEEN(32),
              WGMMA_SIXTEEN(48), WGMMA_SIXTEEN(64));
}

// Before products whose registers were written since the last, or since the beginning.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Ends a group of products; waits until all but the last PENDING groups are done.
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// After the wait for the last products, before their sums are read: keeps the compiler from reading
// them earlier, since it does not know what the wait is for.
template <int SIZE> __device__ __forceinline__ void wgmma_settle(float (&d)[SIZE]) {
#pragma unroll
    for (int i = 0; i < SIZE; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// Registers of each of the warpgroup's threads from here on. A block that begins with fewer for
// some has more for others.
template <int COUNT> __device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> __device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

#endif
