#include "memory.h"
#include "fibers.h"
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sys/mman.h>
#include <unistd.h>

namespace emulator {

struct Allocation {
    size_t bytes;
    char *mapping;
    size_t mapped;
};

static std::map<char *, Allocation> allocations;
static size_t in_use;
constexpr unsigned char GUARD = 0xfd;

static size_t page() {
    static const size_t size = size_t(sysconf(_SC_PAGESIZE));
    return size;
}

static size_t total() {
    static const char *set = getenv("EMULATOR_MEMORY_MIB");
    return (set ? strtoull(set, nullptr, 10) : 4096) << 20;
}

void memory_info(size_t *free, size_t *all) {
    *all = total();
    *free = total() - in_use;
}

void *allocate(size_t bytes) {
    if (bytes == 0 || bytes > total() - in_use) return nullptr;
    const size_t rounded = (bytes + 15) / 16 * 16;
    const size_t pages = (rounded + page() - 1) / page() * page();
    const size_t mapped = pages + 2 * page();
    char *mapping = (char *)mmap(nullptr, mapped, PROT_NONE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    if (mprotect(mapping + page(), pages, PROT_READ | PROT_WRITE) != 0) {
        munmap(mapping, mapped);
        return nullptr;
    }
    char *pointer = mapping + page() + pages - rounded;
    memset(mapping + page(), GUARD, size_t(pointer - mapping) - page());
    memset(pointer, 0xff, bytes);
    memset(pointer + bytes, GUARD, rounded - bytes);
    allocations[pointer] = {bytes, mapping, mapped};
    in_use += bytes;
    return pointer;
}

static bool intact(const char *start, const char *end) {
    for (; start < end; start++)
        if ((unsigned char)*start != GUARD) return false;
    return true;
}

static void protect(const Allocation &allocation, int access) {
    if (mprotect(allocation.mapping + page(), allocation.mapped - 2 * page(), access) != 0)
        fail("the memory of an allocation cannot be protected");
}

void forbid(void *pointer) { protect(allocations.at((char *)pointer), PROT_NONE); }

void permit(void *pointer) {
    const Allocation &allocation = allocations.at((char *)pointer);
    protect(allocation, PROT_READ | PROT_WRITE);
    memset(pointer, 0xff, allocation.bytes);
}

bool release(void *pointer) {
    auto found = allocations.find((char *)pointer);
    if (found == allocations.end()) return false;
    const auto [start, allocation] = *found;
    protect(allocation, PROT_READ | PROT_WRITE);
    const char *end = allocation.mapping + allocation.mapped - page();
    if (!intact(allocation.mapping + page(), start) || !intact(start + allocation.bytes, end)) {
        fprintf(stderr, "cuda emulator: allocation of %zu bytes\n", allocation.bytes);
        fail("something wrote before or behind device memory");
    }
    munmap(allocation.mapping, allocation.mapped);
    in_use -= allocation.bytes;
    allocations.erase(found);
    return true;
}

bool allocated(const void *pointer, size_t bytes) {
    auto next = allocations.upper_bound((char *)pointer);
    if (next == allocations.begin()) return false;
    const auto &[start, allocation] = *--next;
    const size_t offset = size_t((const char *)pointer - start);
    return offset <= allocation.bytes && bytes <= allocation.bytes - offset;
}

static struct sigaction before;

static void on_fault(int signal, siginfo_t *info, void *context) {
    // Only for a kernel: anything else is somebody else's to report.
    if (current) {
        const char *address = (const char *)info->si_addr;
        fprintf(stderr, "cuda emulator: %s: access to %p, which is no device memory\n", where(),
                (const void *)address);
        for (const auto &[start, allocation] : allocations)
            if (address >= allocation.mapping && address < allocation.mapping + allocation.mapped)
                fprintf(stderr, "  %td bytes from the start of an allocation of %zu\n",
                        address - start, allocation.bytes);
        abort();
    }
    sigaction(signal, &before, nullptr);
    (void)context;
}

void report_faults() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before);
}

}  // namespace emulator
