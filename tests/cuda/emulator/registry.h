// The kernels that were compiled in, by source and name.
#pragma once
#include "fibers.h"
#include <map>
#include <string>
#include <utility>

namespace emulator {

struct Kernel {
    std::string source;
    // Runs one thread with the arguments that cuLaunchKernel points to.
    std::function<void(void **)> run;
    // Static shared memory of every kernel of the source.
    char *shared_start, *shared_end;
};

inline std::map<std::string, Kernel> &kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

template <class... Args, size_t... I>
void call(void (*kernel)(Args...), void **arguments, std::index_sequence<I...>) {
    kernel(*(std::decay_t<Args> *)arguments[I]...);
}

template <class... Args> std::function<void(void **)> unpacking(void (*kernel)(Args...)) {
    return [kernel](void **arguments) {
        call(kernel, arguments, std::index_sequence_for<Args...>{});
    };
}

}  // namespace emulator
