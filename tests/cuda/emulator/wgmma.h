// The twins of src/kernels/cuda/wgmma.cuh: products of a warpgroup that go on while its threads do.
//
// Nothing of a product is computed before wgmma_wait says that it is done, and then from the registers of
// A and the shared memory of B as they are at that moment. Until then the sums are poison. Registers that
// were written meanwhile, sums that were, groups without fence, descriptors that differ, products that
// nobody waits for or that one warp of four lacks end the process.
#pragma once
#include <cstdint>

namespace emulator {

// d += A · B for 64 rows and `columns` columns, once it is waited for.
void issue_wgmma(float *d, const uint32_t *a, uint64_t descriptor, int columns);
void fence_wgmma();
void commit_wgmma();
void wait_for_wgmma(unsigned groups_left);
// Ends the process when sums between these are still to be computed.
void need_sums(const float *begin, const float *end);
void set_registers(int count, bool more);

}  // namespace emulator

template <int N>
inline void wgmma_bf16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t descriptor) {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "no shape of wgmma");
    emulator::issue_wgmma(d, a, descriptor, N);
}
inline void wgmma_fence() { emulator::fence_wgmma(); }
inline void wgmma_commit() { emulator::commit_wgmma(); }
template <int PENDING> inline void wgmma_wait() { emulator::wait_for_wgmma(PENDING); }
inline void wgmma_settle(float &d) { emulator::need_sums(&d, &d + 1); }
template <int SIZE> inline void wgmma_settle(float (&d)[SIZE]) { emulator::need_sums(d, d + SIZE); }
template <int COUNT> inline void more_registers() {
    static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "no number of registers");
    emulator::set_registers(COUNT, true);
}
template <int COUNT> inline void fewer_registers() {
    static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "no number of registers");
    emulator::set_registers(COUNT, false);
}
