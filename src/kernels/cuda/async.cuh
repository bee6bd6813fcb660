// Copies to shared memory that go on while threads compute, and the barriers that say when they have
// arrived. Everything here is at 32-bit addresses of shared memory, see shared_address.
//
// A barrier (mbarrier, PTX ISA "Parallel synchronization and communication instructions: mbarrier")
// counts arrivals and, of bulk copies, bytes. Its phase is complete when `count` threads have arrived
// and all expected bytes are there; phases have parity 0, 1, 0, ... from its initialisation on. Before
// the first phase is complete a wait for parity 1 returns at once, so that whoever fills an empty ring
// begins with that.
//
// The emulator's twin of each is in tests/cuda/emulator/async.h, with what the device refuses or
// leaves undefined.
#pragma once
#include "args.cuh"

#if defined(__CUDACC__)

// Dynamic shared memory of a block, as much as the launch says, from a multiple of 1,024 bytes on.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) uint8_t name[]

__device__ __forceinline__ uint32_t shared_address(const void *p) {
    return uint32_t(__cvta_generic_to_shared(p));
}

// ---- barriers: 8 bytes of shared memory each, aligned ----

__device__ __forceinline__ void barrier_init(uint32_t barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// After the initialisations and before the block's __syncthreads, by the thread that made them.
__device__ __forceinline__ void barrier_init_fence() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("{\n .reg .b64 state;\n mbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(barrier)
                 : "memory");
}

// Arrives, and the phase waits for `bytes` of bulk copies too. Capability 9.0.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
#else
    __trap();
#endif
}

// Whether the phase of that parity is complete; may wait a while for it.
__device__ __forceinline__ bool barrier_try(uint32_t barrier, uint32_t parity) {
    uint32_t done;
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 " selp.b32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
#else
    asm volatile("{\n .reg .pred p;\n mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 " selp.b32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
#endif
    return done;
}

// Until the phase of that parity is complete. Traps after 2^33 clocks, some 5 s: a fault must not hang.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    if (barrier_try(barrier, parity)) return;
    const long long start = clock64();
    while (!barrier_try(barrier, parity))
        if (clock64() - start > 1ll << 33) __trap();
}

// Whether this device has bulk copies.
__device__ __forceinline__ bool has_bulk_copies() {
#if __CUDA_ARCH__ >= 900
    return true;
#else
    return false;
#endif
}

// ---- bulk copies: one thread, 16-byte addresses and sizes, capability 9.0 ----

// `bytes` of global memory to shared memory; they count for the phase that `barrier` is in.
__device__ __forceinline__ void bulk_copy(uint32_t to, const void *from, uint32_t bytes,
                                          uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier)
                 : "memory");
#else
    __trap();
#endif
}

// How the second cache keeps what is read once: it goes first.
__device__ __forceinline__ uint64_t evict_first() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
__device__ __forceinline__ void bulk_copy(uint32_t to, const void *from, uint32_t bytes,
                                          uint32_t barrier, uint64_t policy) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
                 " [%0], [%1], %2, [%3], %4;"
                 ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier), "l"(policy)
                 : "memory");
#else
    __trap();
#endif
}

// ---- copies of 16 bytes by every thread, capability 8.0 ----

__device__ __forceinline__ void async_copy16(uint32_t to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to),
                 "l"(__cvta_generic_to_global(from))
                 : "memory");
}

// Arrives at `barrier` when all copies that this thread has asked for are there. Among the arrivals
// that the barrier was initialised for.
__device__ __forceinline__ void async_arrive(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

// Ends a group of this thread's copies; waits until all but its last N groups are there.
__device__ __forceinline__ void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- shared memory by address ----

__device__ __forceinline__ uint4 load_shared128(uint32_t at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(at));
    return v;
}
__device__ __forceinline__ uint2 load_shared64(uint32_t at) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
    return v;
}
__device__ __forceinline__ uint32_t load_shared32(uint32_t at) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
}
__device__ __forceinline__ void store_shared128(uint32_t at, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
}
__device__ __forceinline__ void store_shared32(uint32_t at, uint32_t v) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory");
}

// What threads wrote to shared memory before is seen by bulk copies and wgmma after. Capability 9.0.
__device__ __forceinline__ void proxy_fence() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    __trap();
#endif
}

#endif
