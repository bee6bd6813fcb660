#include "fibers.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace emulator {

Fiber *current;
Block block;

static std::vector<Fiber> fibers;
static const char *kernel;
static const std::function<void()> *body_of_kernel;
static void *scheduler;
static Order order_of_threads;
// Lanes of each warp that live, and those that wait in a collective.
static uint32_t alive[32], arrived[32];
// Lanes that can go on, and those that sleep at a barrier in shared memory.
static uint32_t ready[32], asleep[32];
// Times that polls were answered with no while nothing else happened.
static int fruitless;

constexpr size_t STACK = 256 * 1024;

const char *where() {
    static char text[256];
    if (!kernel) return "";
    int n = snprintf(text, sizeof text, "kernel %s, block (%u, %u, %u)", kernel, block.index.x,
                     block.index.y, block.index.z);
    if (current)
        snprintf(text + n, sizeof text - n, ", thread (%u, %u, %u)", current->thread.x,
                 current->thread.y, current->thread.z);
    return text;
}

void fail(const char *message) {
    fprintf(stderr, "cuda emulator: %s: %s\n", where(), message);
    abort();
}

// Saves the callee's registers on the stack, stores the stack pointer, continues on another stack.
extern "C" void emulator_switch(void **save, void *load);
#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");
constexpr size_t SAVED = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, %function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulator_switch, .-emulator_switch
)");
#else
#error "the CUDA emulator knows x86-64 and aarch64"
#endif

static uint32_t bit(const Fiber &f) { return 1u << f.index % WARP; }

// The next lane of a warp that can go on, behind those of `past`; WARP when there is none.
static unsigned next_lane(unsigned warp, uint32_t past) {
    const uint32_t lanes = ready[warp] & ~past;
    if (!lanes) return WARP;
    return unsigned(order_of_threads == Order::descending ? 31 - __builtin_clz(lanes) : __builtin_ctz(lanes));
}

// Straight to the next lane of the warp; behind the last to the scheduler.
static void wait() {
    Fiber *const me = current;
    const unsigned warp = me->index / WARP;
    const uint32_t mine = bit(*me);
    ready[warp] &= ~mine;
    const uint32_t past = order_of_threads == Order::descending ? ~(mine - 1) : mine | (mine - 1);
    const unsigned next = next_lane(warp, past);
    if (next == WARP) return emulator_switch(&me->stack_pointer, scheduler);
    current = &fibers[warp * WARP + next];
    emulator_switch(&me->stack_pointer, current->stack_pointer);
}
static void go_on(const Fiber &f) { ready[f.index / WARP] |= bit(f); }

bool sleep_at(int barrier, bool poll) {
    Fiber *me = current;
    me->sleeps_at = barrier;
    me->polls = poll;
    asleep[me->index / WARP] |= bit(*me);
    wait();
    return me->received != 0;
}

// Wakes whom `who` chooses of those that sleep at a barrier.
template <class F> static bool wake_if(F who, bool done) {
    bool any = false;
    for (unsigned warp = 0; warp * WARP < block.threads; warp++)
        for (uint32_t lanes = asleep[warp]; lanes; lanes &= lanes - 1) {
            Fiber &f = fibers[warp * WARP + unsigned(__builtin_ctz(lanes))];
            if (!who(f)) continue;
            any = true;
            f.sleeps_at = -1;
            f.received = done;
            asleep[warp] &= ~bit(f);
            go_on(f);
        }
    return any;
}

bool wake(long barrier) {
    fruitless = 0;
    return wake_if([&](const Fiber &f) { return f.sleeps_at == barrier; }, true);
}

static void release_block() {
    if (block.at_barrier == 0 || block.at_barrier != block.live) return;
    int line = 0;
    for (unsigned i = 0; i < block.threads; i++) {
        Fiber &f = fibers[i];
        if (!f.at_block_barrier) continue;
        if (line && line != f.barrier_line) {
            fprintf(stderr, "cuda emulator: barriers at lines %d and %d\n", line, f.barrier_line);
            fail("threads of one block wait at different barriers");
        }
        line = f.barrier_line;
    }
    block.votes = 0;
    for (unsigned i = 0; i < block.threads; i++)
        if (fibers[i].at_block_barrier) block.votes += fibers[i].barrier_vote;
    for (unsigned i = 0; i < block.threads; i++)
        if (fibers[i].at_block_barrier) {
            fibers[i].at_block_barrier = false;
            fibers[i].received = block.votes;
            go_on(fibers[i]);
        }
    block.at_barrier = 0;
}

unsigned sync_block(int line, bool vote) {
    Fiber *me = current;
    me->at_block_barrier = true;
    me->barrier_line = line;
    me->barrier_vote = vote;
    block.at_barrier++;
    release_block();
    if (me->at_block_barrier) wait();
    return unsigned(me->received);
}

// The value of a lane that gives none: NaN in every float format, and no index.
constexpr uint64_t POISON = 0x7fc0dead7fc0deadull;

// Completes the collective that the lanes of `mask` wait in, once all of them that live have come.
static void release_warp(unsigned warp, uint32_t mask) {
    if ((arrived[warp] & mask) != (alive[warp] & mask)) return;
    Fiber *lanes = &fibers[warp * WARP];
    const unsigned n = block.threads - warp * WARP < WARP ? block.threads - warp * WARP : WARP;
    uint32_t present = 0;
    Collective kind = Collective::none;
    for (unsigned i = 0; i < n; i++) {
        const Fiber &f = lanes[i];
        if (!(mask >> i & 1) || f.done) continue;
        if (f.mask != mask) return;
        if (kind != Collective::none && kind != f.collective)
            fail("lanes of one mask wait in different operations of the warp");
        kind = f.collective;
        present |= 1u << i;
    }
    if (kind == Collective::together) {
        if (present != ~0u) fail("an operation of a whole warp that lacks some of its lanes");
        void *offers[WARP];
        for (unsigned i = 0; i < WARP; i++) {
            if (lanes[i].act != lanes[0].act) fail("lanes of one mask wait in different operations of the warp");
            offers[i] = (void *)lanes[i].value;
        }
        lanes[0].act(offers);
    }
    uint32_t ballot = 0;
    for (unsigned i = 0; i < n; i++)
        if ((present >> i & 1) && lanes[i].value) ballot |= 1u << i;
    for (unsigned i = 0; i < n; i++) {
        Fiber &f = lanes[i];
        if (!(present >> i & 1)) continue;
        if (kind == Collective::ballot)
            f.received = ballot;
        else if (kind == Collective::shuffle)
            f.received = (present >> f.from & 1) ? lanes[f.from].value : POISON;
        f.collective = Collective::none;
    }
    arrived[warp] &= ~present;
    ready[warp] |= present;
}

uint64_t collect(Collective kind, uint32_t mask, uint64_t value, int from) {
    Fiber *me = current;
    if (!(mask >> lane() & 1)) fail("a lane outside its own mask");
    me->collective = kind;
    me->mask = mask;
    me->value = value;
    me->from = from;
    arrived[me->index / WARP] |= 1u << lane();
    release_warp(me->index / WARP, mask);
    if (me->collective != Collective::none) wait();
    return me->received;
}

void together(Act act, void *mine) {
    current->act = act;
    collect(Collective::together, ~0u, uint64_t(mine), 0);
}

static void run_fiber() {
    (*body_of_kernel)();
    Fiber *me = current;
    me->done = true;
    block.live--;
    alive[me->index / WARP] &= ~(1u << lane());
    fruitless = 0;
    // A thread that has ended keeps nobody waiting.
    release_block();
    const unsigned first = me->index / WARP * WARP;
    for (unsigned i = first; i < first + WARP && i < block.threads; i++)
        if (fibers[i].collective != Collective::none) release_warp(me->index / WARP, fibers[i].mask);
    wait();
}

static char *with_guard_pages(size_t bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    char *base = (char *)mmap(nullptr, bytes + 2 * page, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED || mprotect(base + page, bytes, PROT_READ | PROT_WRITE) != 0)
        fail("no memory for stacks");
    return base + page;
}

// A fresh stack on which emulator_switch finds registers to load and run_fiber to return to.
static void *fresh_stack(char *stack) {
    void **top = (void **)(stack + STACK);
#if defined(__x86_64__)
    *--top = nullptr;  // run_fiber returns nowhere; this also aligns its frame
    *--top = (void *)run_fiber;
    top -= SAVED;
    memset(top, 0, SAVED * sizeof(void *));
#else
    top -= 20;
    memset(top, 0, 20 * sizeof(void *));
    top[11] = (void *)run_fiber;  // x30
#endif
    return top;
}

// Every thread of a warp that can go on, until it waits; false when there was none.
static bool run_warp(unsigned warp) {
    const unsigned first = next_lane(warp, 0);
    if (first == WARP) return false;
    current = &fibers[warp * WARP + first];
    emulator_switch(&scheduler, current->stack_pointer);
    current = nullptr;
    return true;
}

// Ends the process, saying what sleeping threads wait for.
[[noreturn]] static void fail_stuck() {
    std::map<int, unsigned> sleepers;
    for (unsigned i = 0; i < block.threads; i++)
        if (!fibers[i].done && fibers[i].sleeps_at >= 0) sleepers[fibers[i].sleeps_at]++;
    for (const auto &[barrier, threads] : sleepers) {
        fprintf(stderr, "cuda emulator: %u threads wait ", threads);
        describe_barrier(barrier);
    }
    fail("no thread can go on: a barrier or shuffle that others never reach");
}

static void run_block() {
    const Order order = order_of_threads;
    for (unsigned i = 0; i < block.threads; i++) {
        Fiber &f = fibers[i];
        char *stack = f.stack;
        f = Fiber();
        f.stack = stack;
        f.index = i;
        f.thread = {i % block.size.x, i / block.size.x % block.size.y,
                    i / (block.size.x * block.size.y)};
        f.stack_pointer = fresh_stack(f.stack);
    }
    block.live = block.threads;
    block.at_barrier = 0;
    for (unsigned warp = 0; warp * WARP < block.threads; warp++) {
        const unsigned lanes = block.threads - warp * WARP;
        alive[warp] = lanes < WARP ? (1u << lanes) - 1 : ~0u;
        arrived[warp] = asleep[warp] = 0;
        ready[warp] = alive[warp];
    }
    fruitless = 0;
    begin_block();
    begin_block_of_wgmma();
    const unsigned warps = (block.threads + WARP - 1) / WARP;
    while (block.live) {
        bool progress = false;
        // A warp goes on until all of it waits for the others: as far ahead of them as barriers allow.
        for (unsigned k = 0; k < warps; k++)
            while (run_warp(order == Order::descending ? warps - 1 - k : k)) progress = true;
        if (deliver_some(!progress, order) || progress) continue;
        if (++fruitless > 1000 || !wake_if([](const Fiber &f) { return f.polls; }, false)) fail_stuck();
    }
    end_block();
    end_block_of_wgmma();
}

void launch(const char *name, dim3 grid, dim3 size, char *shared_start, char *shared_end,
            uint32_t dynamic, Order order, const std::function<void()> &body) {
    kernel = name;
    body_of_kernel = &body;
    order_of_threads = order;
    block.grid = grid;
    block.size = size;
    block.threads = size.x * size.y * size.z;
    while (fibers.size() < block.threads) {
        fibers.emplace_back();
        fibers.back().stack = with_guard_pages(STACK);
    }
    prepare_shared(dynamic, shared_start, shared_end);
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    for (uint64_t k = 0; k < blocks; k++) {
        const uint64_t i = order == Order::descending ? blocks - 1 - k : k;
        block.index = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y),
                       unsigned(i / (uint64_t(grid.x) * grid.y))};
        if (shared_start) memset(shared_start, 0xff, size_t(shared_end - shared_start));
        run_block();
    }
    kernel = nullptr;
}

}  // namespace emulator
