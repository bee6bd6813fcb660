// One .cu, compiled for the CPU: SOURCE is its name in quotes, EMULATOR_SHARED the section of its shared
// memory, and LIST a file that names its kernels, one `KERNEL(name)` each. build.sh sets them.
#include "cuda_on_cpu.h"
#include "registry.h"

// In a namespace without a name, so that device functions of two sources may have one name.
namespace {
#include SOURCE
}

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
extern "C" {
extern char JOIN(__start_, SECTION)[] __attribute__((weak, visibility("hidden")));
extern char JOIN(__stop_, SECTION)[] __attribute__((weak, visibility("hidden")));
}

namespace {
struct Register {
    Register() {
#define KERNEL(name)                                                                              \
    emulator::kernels()[#name] = {SOURCE, emulator::binding(name), JOIN(__start_, SECTION),     \
                                  JOIN(__stop_, SECTION)};
#include LIST
    }
} register_kernels;
}  // namespace
