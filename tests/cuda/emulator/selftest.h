// What the parts of the emulator's own test share.
#pragma once
#include "fibers.h"
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

extern "C" {
int cuMemAlloc_v2(void **, size_t);
int cuMemFree_v2(void *);
int cuModuleLoadData(void **, const void *);
int cuModuleGetFunction(void **, void *, const char *);
int cuFuncSetAttribute(void *, int, int);
int cuDeviceGetAttribute(int *, int, int);
int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
}

extern int failures;
// The order of threads that is being tested.
extern const char *order;
#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            printf("FAILED %s:%d (%s): %s\n", __FILE__, __LINE__, order, #condition);             \
            failures++;                                                                           \
        }                                                                                         \
    } while (0)

template <class T> T *device(size_t n) {
    void *pointer = nullptr;
    if (cuMemAlloc_v2(&pointer, n * sizeof(T)) != 0) abort();
    return (T *)pointer;
}

void *function(void *module, const char *name);

template <class... Args>
int run_in(void *module, const char *name, unsigned grid, unsigned block, unsigned shared, Args... args) {
    void *arguments[] = {(void *)&args..., nullptr};
    return cuLaunchKernel(function(module, name), grid, 1, 1, block, 1, 1, shared, nullptr, arguments, nullptr);
}

// What the process says when `fault` runs in a child that must not survive it.
std::string dies(const std::function<void()> &fault);
// Whether `text` has that part.
bool has(const std::string &text, const char *part);

void check_async();
void check_wgmma();
void check_wgmma_is_missing();
void check_smaller_device(int capability, int kib);
