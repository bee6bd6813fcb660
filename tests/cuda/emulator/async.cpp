#include "memory.h"
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>
// Behind the library, whose words it takes.
#include "cuda_on_cpu.h"

namespace emulator {

// ---- the device ----

int capability() {
    static const int value = [] {
        const char *set = getenv("EMULATOR_CAPABILITY");
        int major = 9, minor = 0;
        if (set) sscanf(set, "%d.%d", &major, &minor);
        return 10 * major + minor;
    }();
    return value;
}

uint32_t shared_limit() {
    static const char *set = getenv("EMULATOR_SHARED_KIB");
    static const uint32_t bytes = (set ? uint32_t(strtoul(set, nullptr, 10)) : 227) * 1024;
    return bytes;
}

void need_capability(int least, const char *instruction) {
    if (capability() >= least) return;
    fprintf(stderr, "cuda emulator: %s needs capability %d.%d\n", instruction, least / 10, least % 10);
    fail("illegal instruction");
}

// ---- shared memory ----

char *dynamic_start;
uint32_t dynamic_bytes;
uint64_t written[1 << 14], now = 1;
static uint64_t began;           // when the block did
static uint64_t fenced[1024];    // when each thread last made a fence
static char *static_start, *static_end;
constexpr uint32_t KIB = 1024, ARENA = 256 * KIB;
constexpr char GUARD = '\xfd';

static uint32_t up_to_kib(size_t n) { return uint32_t((n + KIB - 1) / KIB * KIB); }
// The alignment of __shared__ variables, up to 1,024, is that of their addresses.
static char *static_base() { return (char *)(uintptr_t(static_start) / KIB * KIB); }
static uint32_t static_address() { return DYNAMIC_ADDRESS + up_to_kib(dynamic_bytes); }

uint32_t shared_address(const void *p) {
    const char *at = (const char *)p;
    if (at >= dynamic_start && at <= dynamic_start + dynamic_bytes)
        return DYNAMIC_ADDRESS + uint32_t(at - dynamic_start);
    if (at >= static_start && at <= static_end) return static_address() + uint32_t(at - static_base());
    fail("the address of memory that is not shared");
}

char *anywhere_in_shared(uint32_t address, uint32_t bytes) {
    const uint32_t offset = address - DYNAMIC_ADDRESS;
    if (offset < dynamic_bytes && bytes <= dynamic_bytes - offset) return dynamic_start + offset;
    char *at = static_base() + (address - static_address());
    if (address >= static_address() && at >= static_start && at + bytes <= static_end) return at;
    fprintf(stderr, "cuda emulator: %u bytes at %d of %u bytes of dynamic shared memory\n", bytes,
            int(offset), dynamic_bytes);
    fail("an address outside shared memory");
}

// Dynamic memory ends, but for what is missing to a KiB, at a page that cannot be touched.
void prepare_shared(uint32_t bytes, char *start, char *end) {
    static char *arena = [] {
        const size_t page = size_t(sysconf(_SC_PAGESIZE));
        char *base = (char *)mmap(nullptr, ARENA + 2 * page, PROT_NONE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED || mprotect(base + page, ARENA, PROT_READ | PROT_WRITE) != 0)
            fail("no shared memory");
        return base + page;
    }();
    dynamic_bytes = bytes;
    dynamic_start = arena + ARENA - up_to_kib(bytes);
    static_start = start, static_end = end;
}

void need_fence(uint32_t address, uint32_t bytes, const char *reader) {
    const uint32_t last = (address + bytes + 15) / 16;
    for (uint32_t i = address / 16; i < last && i < 1 << 14; i++) {
        const uint64_t time = written[i] >> 10, thread = written[i] & 1023;
        if (time < began || fenced[thread] > time || fenced[current->index] > time) continue;
        fprintf(stderr, "cuda emulator: %s at %u, which thread %u wrote\n", reader, i * 16, unsigned(thread));
        fail("bytes that a thread wrote are used without proxy_fence between");
    }
}

void fence_proxy() {
    need_capability(90, "proxy_fence");
    fenced[current->index] = now++;
}

// ---- barriers ----

struct Barrier {
    uint32_t address;
    int count, pending;
    int64_t bytes = 0;
    // Phases that are complete, how many of them somebody knows to be, and the last with copies.
    uint32_t phases = 0, seen = 0, copied = 0;
};
static std::vector<Barrier> barriers;
// What stands in the 8 bytes of the barrier of this place: nobody else writes them.
static uint64_t mark(size_t place) { return 0xbaa71e4000000000u | place; }

static Barrier &barrier_at(uint32_t address) {
    uint64_t found;
    memcpy(&found, in_shared(address, 8, 8), 8);
    const size_t place = found & 0xffffffff;
    if (place < barriers.size() && found == mark(place) && barriers[place].address == address)
        return barriers[place];
    for (const Barrier &barrier : barriers)
        if (barrier.address == address) fail("something wrote to the memory of a barrier");
    fail("no barrier was initialised here");
}

void init_barrier(uint32_t address, int count) {
    if (count < 1 || count >= 1 << 20) fail("a barrier of so many arrivals");
    for (const Barrier &barrier : barriers)
        if (barrier.address == address) fail("a barrier is initialised again");
    const uint64_t value = mark(barriers.size());
    memcpy(in_shared(address, 8, 8), &value, 8);
    barriers.push_back({address, count, count});
}

static void settle(Barrier &barrier) {
    if (barrier.pending) return;
    if (barrier.bytes < 0) fail("more bytes arrived than the barrier expected");
    if (barrier.bytes) return;
    barrier.phases++;
    barrier.pending = barrier.count;
    if (wake(&barrier - barriers.data())) barrier.seen = barrier.phases;
}

void arrive(uint32_t address, uint32_t bytes) {
    Barrier &barrier = barrier_at(address);
    if (barrier.pending == 0) fail("more arrivals than the barrier counts");
    barrier.bytes += bytes;
    if (barrier.bytes >= 1 << 20) fail("more bytes than a barrier can count");
    barrier.pending--;
    settle(barrier);
}

bool wait_at(uint32_t address, uint32_t parity, bool poll) {
    Barrier &barrier = barrier_at(address);
    if (parity > 1) fail("a parity is 0 or 1");
    if ((barrier.phases & 1) == parity) return sleep_at(int(&barrier - barriers.data()), poll);
    barrier.seen = barrier.phases;
    return true;
}

void describe_barrier(int place) {
    const Barrier &barrier = barriers[size_t(place)];
    fprintf(stderr, "for parity %u of the barrier at %u, whose phase %u lacks %d of %d arrivals and %lld bytes\n",
            barrier.phases & 1, barrier.address, barrier.phases, barrier.pending, barrier.count,
            (long long)barrier.bytes);
}

// ---- copies ----

struct Copy {
    uint32_t to, bytes;
    const void *from;
    unsigned group;  // of those of its thread
};
// What arrives together, and then at a barrier.
struct Arrival {
    uint32_t barrier;
    bool bulk;
    std::vector<Copy> copies;
};
static std::vector<Arrival> under_way;
struct Copies {
    std::vector<Copy> asked;
    unsigned group = 0;
};
static Copies of_thread[1024];
static uint32_t chance;

static bool overlap(const Copy &copy, uint32_t address, uint32_t bytes) {
    return copy.to < address + bytes && address < copy.to + copy.bytes;
}

void need_arrived(uint32_t address, uint32_t bytes, const char *reader) {
    for (const Arrival &arrival : under_way)
        for (const Copy &copy : arrival.copies)
            if (overlap(copy, address, bytes)) {
                fprintf(stderr, "cuda emulator: %s at %u\n", reader, address);
                fail("a copy to these bytes is still under way");
            }
}

void copy_bulk(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier) {
    need_capability(90, "bulk_copy");
    if (bytes % 16 || to % 16 || uintptr_t(from) % 16)
        fail("a bulk copy whose addresses and size are not multiples of 16");
    if (bytes && !allocated(from, bytes)) fail("a bulk copy out of what is no device memory");
    char *const there = in_shared(to, bytes, 16);
    barrier_at(barrier);
    need_arrived(to, bytes, "bulk_copy");
    need_fence(to, bytes, "bulk_copy");
    memset(there, 0xff, bytes);
    under_way.push_back({barrier, true, {{to, bytes, from, 0}}});
}

void copy_16(uint32_t to, const void *from) {
    need_capability(80, "async_copy16");
    if (uintptr_t(from) % 16) fail("misaligned address of an asynchronous copy");
    // Read now too, so that a fault has the name of the thread.
    (void)*(const volatile char *)from;
    memset(in_shared(to, 16, 16), 0xff, 16);
    Copies &mine = of_thread[current->index];
    mine.asked.push_back({to, 16, from, mine.group});
}

static void deliver(const Copy &copy) {
    memcpy(in_shared(copy.to, copy.bytes, 16), copy.from, copy.bytes);
}

void arrive_after_copies(uint32_t barrier) {
    Barrier &at = barrier_at(barrier);
    Copies &mine = of_thread[current->index];
    under_way.push_back({barrier, false, std::move(mine.asked)});
    mine.asked.clear();
    (void)at;
}

void commit_copies() { of_thread[current->index].group++; }

void wait_for_copies(unsigned groups_left) {
    Copies &mine = of_thread[current->index];
    size_t done = 0;
    for (; done < mine.asked.size(); done++) {
        if (mine.asked[done].group + groups_left >= mine.group) break;
        deliver(mine.asked[done]);
    }
    mine.asked.erase(mine.asked.begin(), mine.asked.begin() + long(done));
}

bool deliver_some(bool must, Order order) {
    bool any = false;
    while (!under_way.empty()) {
        chance = chance * 1664525 + 1013904223;
        // As late as can be, or whenever it happens.
        if (!(must && !any) && (order == Order::ascending || chance >> 30 != 0)) break;
        any = true;
        const size_t which = size_t(uint64_t(chance << 2) * under_way.size() >> 32);
        const Arrival arrival = std::move(under_way[which]);
        if (which + 1 != under_way.size()) under_way[which] = std::move(under_way.back());
        under_way.pop_back();
        for (const Copy &copy : arrival.copies) deliver(copy);
        Barrier &barrier = barrier_at(arrival.barrier);
        barrier.copied = barrier.phases + 1;
        if (arrival.bulk)
            barrier.bytes -= arrival.copies[0].bytes;
        else if (barrier.pending-- == 0)
            fail("more arrivals than the barrier counts");
        settle(barrier);
    }
    return any;
}

// ---- blocks ----

void begin_block() {
    barriers.clear();
    chance = 1;
    began = now;
    if (!dynamic_bytes) return;
    memset(dynamic_start, 0xff, dynamic_bytes);
    memset(dynamic_start + dynamic_bytes, GUARD, up_to_kib(dynamic_bytes) - dynamic_bytes);
}

void end_block() {
    bool waited = under_way.empty();
    for (unsigned i = 0; i < block.threads; i++) {
        waited = waited && of_thread[i].asked.empty();
        of_thread[i].group = 0;
    }
    for (const Barrier &barrier : barriers) waited = waited && barrier.copied <= barrier.seen;
    if (!waited) fail("a copy that nobody waited for when the block ended");
    for (uint32_t i = dynamic_bytes; i < up_to_kib(dynamic_bytes); i++)
        if (dynamic_start[i] != GUARD) fail("something wrote behind the dynamic shared memory");
}

}  // namespace emulator
