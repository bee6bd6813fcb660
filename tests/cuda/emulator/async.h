// The twins of src/kernels/cuda/async.cuh: dynamic shared memory, barriers, copies that arrive late.
//
// What the device leaves undefined is poisoned or refused. The destination of a copy is poison until it
// arrives, which is as late as can be in the ascending order of threads (when nobody can go on without
// it), and at some moment in the descending one. A copy that nobody waited for, more arrivals than a
// barrier counts, waits at memory that is no barrier, misaligned or foreign addresses, and bytes that a
// thread wrote and the asynchronous proxy touches without a fence between end the process.
#pragma once
#include <cstdint>
#include <cstring>

namespace emulator {

// Ends the process where the device has no such instruction.
void need_capability(int least, const char *instruction);

// Shared memory by address: dynamic memory from here on, __shared__ variables of the source behind it.
constexpr uint32_t DYNAMIC_ADDRESS = 1024;
extern char *dynamic_start;
extern uint32_t dynamic_bytes;
uint32_t shared_address(const void *p);
// Of bytes that may lie anywhere in shared memory; ends the process where they do not.
char *anywhere_in_shared(uint32_t address, uint32_t bytes);
inline char *in_shared(uint32_t address, uint32_t bytes, uint32_t alignment) {
    const uint32_t offset = address - DYNAMIC_ADDRESS;
    if (address % alignment == 0 && offset < dynamic_bytes && bytes <= dynamic_bytes - offset)
        return dynamic_start + offset;
    if (address % alignment) fail("misaligned address of shared memory");
    return anywhere_in_shared(address, bytes);
}

// Who wrote 16 bytes of shared memory by address, and when: time · 1024 + thread.
extern uint64_t written[1 << 14], now;
inline void write_shared(uint32_t address, const void *from, uint32_t bytes) {
    memcpy(in_shared(address, bytes, bytes), from, bytes);
    if (address / 16 < 1 << 14) written[address / 16] = now++ << 10 | current->index;
}
// Ends the process when a thread wrote some of these bytes and neither it nor the running one has made a
// fence since.
void need_fence(uint32_t address, uint32_t bytes, const char *reader);
// Ends the process when a copy to some of these bytes is still under way.
void need_arrived(uint32_t address, uint32_t bytes, const char *reader);

void init_barrier(uint32_t barrier, int count);
void arrive(uint32_t barrier, uint32_t bytes);
// Waits; a poll gives up when nothing else can go on.
bool wait_at(uint32_t barrier, uint32_t parity, bool poll);
void copy_bulk(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier);
void copy_16(uint32_t to, const void *from);
void arrive_after_copies(uint32_t barrier);
void commit_copies();
void wait_for_copies(unsigned groups_left);
void fence_proxy();

}  // namespace emulator

#define DYNAMIC_SHARED(name) uint8_t *const name = (uint8_t *)emulator::dynamic_start

inline uint32_t shared_address(const void *p) { return emulator::shared_address(p); }

inline void barrier_init(uint32_t barrier, int count) { emulator::init_barrier(barrier, count); }
inline void barrier_init_fence() {}
inline void barrier_arrive(uint32_t barrier) { emulator::arrive(barrier, 0); }
inline void barrier_expect(uint32_t barrier, uint32_t bytes) {
    emulator::need_capability(90, "barrier_expect");
    emulator::arrive(barrier, bytes);
}
inline bool barrier_try(uint32_t barrier, uint32_t parity) {
    return emulator::wait_at(barrier, parity, true);
}
inline void barrier_wait(uint32_t barrier, uint32_t parity) {
    emulator::wait_at(barrier, parity, false);
}

inline bool has_bulk_copies() { return emulator::capability() >= 90; }
inline void bulk_copy(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier) {
    emulator::copy_bulk(to, from, bytes, barrier);
}
inline uint64_t evict_first() { return 0x12f0000000000000u; }
inline void bulk_copy(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier, uint64_t policy) {
    if (policy != evict_first()) emulator::fail("no policy of the cache");
    emulator::copy_bulk(to, from, bytes, barrier);
}

inline void async_copy16(uint32_t to, const void *from) { emulator::copy_16(to, from); }
inline void async_arrive(uint32_t barrier) { emulator::arrive_after_copies(barrier); }
inline void async_commit() { emulator::commit_copies(); }
template <int N> void async_wait() { emulator::wait_for_copies(N); }

inline uint4 load_shared128(uint32_t at) {
    uint4 v;
    memcpy(&v, emulator::in_shared(at, 16, 16), 16);
    return v;
}
inline uint2 load_shared64(uint32_t at) {
    uint2 v;
    memcpy(&v, emulator::in_shared(at, 8, 8), 8);
    return v;
}
inline uint32_t load_shared32(uint32_t at) {
    uint32_t v;
    memcpy(&v, emulator::in_shared(at, 4, 4), 4);
    return v;
}
inline void store_shared128(uint32_t at, uint4 v) { emulator::write_shared(at, &v, 16); }
inline void store_shared32(uint32_t at, uint32_t v) { emulator::write_shared(at, &v, 4); }
inline void proxy_fence() { emulator::fence_proxy(); }
