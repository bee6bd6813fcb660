// The kernels that were compiled in, by source and name.
#pragma once
#include "fibers.h"
#include <map>
#include <string>
#include <tuple>
#include <utility>

namespace emulator {

struct Kernel {
    std::string source;
    // Copies the arguments that cuLaunchKernel points to, and gives what runs one thread with them.
    std::function<std::function<void()>(void **)> bind;
    // Static shared memory of every kernel of the source.
    char *shared_start, *shared_end;
};

inline std::map<std::string, Kernel> &kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

template <class... Args, size_t... I>
std::function<void()> bound(void (*kernel)(Args...), void **arguments, std::index_sequence<I...>) {
    const std::tuple<std::decay_t<Args>...> values(*(std::decay_t<Args> *)arguments[I]...);
    return [kernel, values] { std::apply(kernel, values); };
}

template <class... Args>
std::function<std::function<void()>(void **)> binding(void (*kernel)(Args...)) {
    return [kernel](void **arguments) {
        return bound(kernel, arguments, std::index_sequence_for<Args...>{});
    };
}

}  // namespace emulator
