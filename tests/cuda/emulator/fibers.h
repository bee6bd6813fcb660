// Runs CUDA kernels on the CPU: a fiber per CUDA thread, block after block, on one core.
//
// A fiber runs until it meets a barrier, a shuffle or its end. Nothing but these makes one thread wait
// for another, so a kernel that lacks a barrier reads what its neighbour has not written yet, in one
// order of threads or in the other. What a real device leaves undefined is poisoned or refused here:
// shared memory at the start of a block, values shuffled from a lane that takes no part, barriers that
// only some threads of a block reach.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
    unsigned x, y, z;
};

namespace emulator {

constexpr unsigned WARP = 32;

// What a lane does in a collective operation of its warp.
enum class Collective : uint8_t { none, barrier, shuffle, ballot, together };

// What is done once with what all lanes of a warp offer.
using Act = void (*)(void *const (&offers)[WARP]);

struct Fiber {
    void *stack_pointer = nullptr;
    char *stack = nullptr;
    uint3 thread;
    unsigned index = 0;
    bool done = false;
    bool at_block_barrier = false;
    // Where it waits, so that threads at different barriers are noticed.
    int barrier_line = 0;
    bool barrier_vote = false;
    // The collective it waits in: over the lanes of `mask`, offering `value`, asking lane `from`.
    Collective collective = Collective::none;
    uint32_t mask = 0;
    uint64_t value = 0;
    int from = 0;
    uint64_t received = 0;
    Act act = nullptr;
    // The barrier in shared memory that it waits at, or -1; a poll may be answered with no.
    int sleeps_at = -1;
    bool polls = false;
};

struct Block {
    dim3 grid, size;
    uint3 index;
    unsigned threads = 0, live = 0, at_barrier = 0;
    unsigned votes = 0;
};

// The running thread and block. One kernel runs at a time: the driver holds a lock.
extern Fiber *current;
extern Block block;

// Orders in which threads and blocks are run.
enum class Order { ascending, descending };

// Runs `body` once per thread of the grid. `shared` is the range of the kernel's shared memory, `dynamic`
// how many bytes a block has besides.
void launch(const char *name, dim3 grid, dim3 size, char *shared_start, char *shared_end,
            uint32_t dynamic, Order order, const std::function<void()> &body);

// __syncthreads at a line of the source; the number of threads that voted true.
unsigned sync_block(int line, bool vote);

// One collective operation of the warp. A shuffle gives the value of lane `from`, or poison when that
// lane takes no part; a ballot the lanes of `mask` that offered a value other than 0.
uint64_t collect(Collective kind, uint32_t mask, uint64_t value, int from);

// Does `act` when all lanes of the warp have come, before any of them goes on.
void together(Act act, void *mine);

// Until the barrier of this place in async.cpp wakes its threads; false for a poll when nothing else goes on.
bool sleep_at(int barrier, bool poll);
// Whether somebody slept there.
bool wake(long barrier);

// Compute capability, ten times its major and its minor number: EMULATOR_CAPABILITY, or 9.0.
int capability();
// Bytes of shared memory that a block may have: EMULATOR_SHARED_KIB, or 227.
uint32_t shared_limit();

// Of async.cpp, for the scheduler. Copies arrive when they `must`, since nobody can go on, or by chance.
void prepare_shared(uint32_t bytes, char *static_start, char *static_end);
void begin_block();
void end_block();
bool deliver_some(bool must, Order order);
// Of wgmma.cpp.
void begin_block_of_wgmma();
void end_block_of_wgmma();
void describe_barrier(int barrier);

inline unsigned lane() { return current->index % WARP; }

// Ends the process, naming the kernel, block and thread.
[[noreturn]] void fail(const char *message);

// What the process was doing, for a message: kernel, block and thread, or nothing.
const char *where();

}  // namespace emulator
