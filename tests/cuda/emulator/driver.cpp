// The CUDA driver's interface over host memory and fibers: what cudarc, candle and this crate call.
//
// Everything runs at once and in order, on the calling thread. A fat binary from the stand-in nvcc names
// its source; a kernel is found by that and its name. Kernels of candle are known by name only: launching
// one is an error that says so.
#include "memory.h"
#include "registry.h"
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

using namespace emulator;

#define API extern "C" __attribute__((visibility("default")))

enum Status {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    FILE_NOT_FOUND = 301,
    NOT_FOUND = 500,
    NOT_SUPPORTED = 801,
};

struct Module { std::string source; };
struct Function {
    std::string name;
    const Kernel *kernel;
    int dynamic_shared_limit = 48 * 1024;
};
using Clock = std::chrono::steady_clock;

static std::recursive_mutex device;
using Lock = std::lock_guard<std::recursive_mutex>;
static int context;

API int cuInit(unsigned) {
    static const bool once = (report_faults(), true);
    return once ? SUCCESS : SUCCESS;
}
API int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
API int cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
API int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal == 0 ? SUCCESS : INVALID_DEVICE; }
API int cuDeviceGetName(char *name, int length, int) { snprintf(name, size_t(length), "CUDA emulator"); return SUCCESS; }
API int cuDeviceTotalMem_v2(size_t *bytes, int) { size_t free; memory_info(&free, bytes); return SUCCESS; }
API int cuDeviceGetUuid(void *uuid, int) { memset(uuid, 0, 16); return SUCCESS; }
API int cuDeviceGetUuid_v2(void *uuid, int) { memset(uuid, 0, 16); return SUCCESS; }
API int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
        case 1: *value = 1024; break;           // threads per block
        case 8: *value = 48 * 1024; break;      // shared memory per block
        case 10: *value = 32; break;            // warp size
        case 13: *value = 1000000; break;       // clock rate, kHz
        case 16: *value = 4; break;             // multiprocessors
        case 38: *value = 50 << 20; break;      // L2 cache
        case 39: *value = 2048; break;          // threads per multiprocessor
        case 75: *value = 9; break;             // compute capability, major
        case 76: *value = 0; break;             // and minor
        case 81: *value = 228 * 1024; break;    // shared memory per multiprocessor
        case 97: *value = 227 * 1024; break;    // shared memory per block, at most
        case 115: *value = 1; break;            // memory pools
        default: *value = 1;
    }
    return SUCCESS;
}
API int cuDevicePrimaryCtxRetain(void **c, int) { *c = &context; return SUCCESS; }
API int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API int cuCtxGetCurrent(void **c) { *c = &context; return SUCCESS; }
API int cuCtxSetCurrent(void *) { return SUCCESS; }
API int cuCtxDestroy_v2(void *) { return SUCCESS; }
API int cuCtxSynchronize() { return SUCCESS; }

API int cuStreamCreate(void **stream, unsigned) { *stream = new int; return SUCCESS; }
API int cuStreamCreateWithPriority(void **stream, unsigned, int) { *stream = new int; return SUCCESS; }
API int cuStreamDestroy_v2(void *stream) { delete (int *)stream; return SUCCESS; }
API int cuStreamSynchronize(void *) { return SUCCESS; }
API int cuStreamQuery(void *) { return SUCCESS; }
API int cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }
API int cuStreamIsCapturing(void *, int *status) { *status = 0; return SUCCESS; }
API int cuEventCreate(void **event, unsigned) { *event = new Clock::time_point; return SUCCESS; }
API int cuEventDestroy_v2(void *event) { delete (Clock::time_point *)event; return SUCCESS; }
API int cuEventRecord(void *event, void *) { *(Clock::time_point *)event = Clock::now(); return SUCCESS; }
API int cuEventSynchronize(void *) { return SUCCESS; }
API int cuEventQuery(void *) { return SUCCESS; }
API int cuEventElapsedTime(float *ms, void *start, void *end) {
    *ms = std::chrono::duration<float, std::milli>(*(Clock::time_point *)end - *(Clock::time_point *)start).count();
    return SUCCESS;
}
API int cuEventElapsedTime_v2(float *ms, void *start, void *end) { return cuEventElapsedTime(ms, start, end); }

API int cuMemGetInfo_v2(size_t *free, size_t *total) { Lock lock(device); memory_info(free, total); return SUCCESS; }
API int cuMemAlloc_v2(void **pointer, size_t bytes) {
    Lock lock(device);
    if (bytes == 0) return INVALID_VALUE;
    *pointer = allocate(bytes);
    return *pointer ? SUCCESS : OUT_OF_MEMORY;
}
API int cuMemAllocAsync(void **pointer, size_t bytes, void *) { return cuMemAlloc_v2(pointer, bytes); }
API int cuMemFree_v2(void *pointer) {
    Lock lock(device);
    return !pointer || release(pointer) ? SUCCESS : INVALID_VALUE;
}
API int cuMemFreeAsync(void *pointer, void *) { return cuMemFree_v2(pointer); }
// Memory pools: nothing is kept, so there is nothing to set or to give back.
API int cuDeviceGetMemPool(void **pool, int) { *pool = &context; return SUCCESS; }
API int cuMemPoolSetAttribute(void *, int, void *) { return SUCCESS; }
API int cuMemPoolTrimTo(void *, size_t) { return SUCCESS; }
API int cuMemHostAlloc(void **pointer, size_t bytes, unsigned) { *pointer = malloc(bytes); return *pointer ? SUCCESS : OUT_OF_MEMORY; }
API int cuMemAllocHost_v2(void **pointer, size_t bytes) { return cuMemHostAlloc(pointer, bytes, 0); }
API int cuMemFreeHost(void *pointer) { free(pointer); return SUCCESS; }
API int cuMemHostRegister_v2(void *, size_t, unsigned) { return SUCCESS; }
API int cuMemHostUnregister(void *) { return SUCCESS; }

API int cuMemcpyHtoD_v2(void *to, const void *from, size_t bytes) {
    Lock lock(device);
    if (bytes && !allocated(to, bytes)) return INVALID_VALUE;
    memcpy(to, from, bytes);
    return SUCCESS;
}
API int cuMemcpyDtoH_v2(void *to, const void *from, size_t bytes) {
    Lock lock(device);
    if (bytes && !allocated(from, bytes)) return INVALID_VALUE;
    memcpy(to, from, bytes);
    return SUCCESS;
}
API int cuMemcpyDtoD_v2(void *to, const void *from, size_t bytes) {
    Lock lock(device);
    if (bytes && (!allocated(to, bytes) || !allocated(from, bytes))) return INVALID_VALUE;
    memmove(to, from, bytes);
    return SUCCESS;
}
API int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *) { return cuMemcpyHtoD_v2(to, from, bytes); }
API int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, void *) { return cuMemcpyDtoH_v2(to, from, bytes); }
API int cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, void *) { return cuMemcpyDtoD_v2(to, from, bytes); }
API int cuMemcpyPeerAsync(...) { return NOT_SUPPORTED; }
API int cuMemsetD8_v2(void *to, unsigned char value, size_t bytes) {
    Lock lock(device);
    if (bytes && !allocated(to, bytes)) return INVALID_VALUE;
    memset(to, value, bytes);
    return SUCCESS;
}
API int cuMemsetD8Async(void *to, unsigned char value, size_t bytes, void *) { return cuMemsetD8_v2(to, value, bytes); }

API int cuModuleLoadData(void **module, const void *image) {
    static const char magic[] = "EMULATED ";
    if (strncmp((const char *)image, magic, sizeof magic - 1) != 0) {
        fprintf(stderr, "cuda emulator: this program was built by a real nvcc\n");
        return INVALID_IMAGE;
    }
    *module = new Module{(const char *)image + sizeof magic - 1};
    return SUCCESS;
}
API int cuModuleLoad(void **, const char *) { return FILE_NOT_FOUND; }
API int cuModuleUnload(void *module) { delete (Module *)module; return SUCCESS; }
API int cuModuleGetGlobal_v2(void **, size_t *, void *, const char *) { return NOT_FOUND; }
API int cuModuleGetFunction(void **function, void *module, const char *name) {
    Lock lock(device);
    const std::string &source = ((Module *)module)->source;
    bool ours = false;
    for (const auto &[known, kernel] : kernels()) ours |= kernel.source == source;
    auto found = kernels().find(name);
    if (ours && (found == kernels().end() || found->second.source != source)) return NOT_FOUND;
    *function = new Function{name, ours ? &found->second : nullptr};
    return SUCCESS;
}
API int cuFuncSetAttribute(void *function, int attribute, int value) {
    if (attribute != 8) return SUCCESS;  // 8: the most dynamic shared memory
    if (value > 227 * 1024) return INVALID_VALUE;
    ((Function *)function)->dynamic_shared_limit = value;
    return SUCCESS;
}
API int cuFuncGetAttribute(int *value, int, void *) { *value = 0; return SUCCESS; }
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *, int, size_t) { *blocks = 1; return SUCCESS; }
API int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                       unsigned bz, unsigned shared, void *, void **arguments, void **) {
    Lock lock(device);
    auto *function = (Function *)f;
    const uint64_t threads = uint64_t(bx) * by * bz;
    if (!gx || !gy || !gz || !threads || threads > 1024 || bz > 64 || gx > 0x7fffffff ||
        gy > 65535 || gz > 65535 || shared > unsigned(function->dynamic_shared_limit))
        return INVALID_VALUE;
    const Kernel *kernel = function->kernel;
    if (!kernel) {
        fprintf(stderr, "cuda emulator: no body for the kernel %s, which is not ours\n", function->name.c_str());
        return NOT_SUPPORTED;
    }
    const char *set = getenv("EMULATOR_ORDER");
    const Order order = set && !strcmp(set, "descending") ? Order::descending : Order::ascending;
    launch(function->name.c_str(), dim3(gx, gy, gz), dim3(bx, by, bz), shared, kernel->shared_start,
           kernel->shared_end, order, [&] { kernel->run(arguments); });
    return SUCCESS;
}

API int cuGetErrorName(int status, const char **text) {
    switch (status) {
        case SUCCESS: *text = "CUDA_SUCCESS"; break;
        case INVALID_VALUE: *text = "CUDA_ERROR_INVALID_VALUE"; break;
        case OUT_OF_MEMORY: *text = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case INVALID_DEVICE: *text = "CUDA_ERROR_INVALID_DEVICE"; break;
        case INVALID_IMAGE: *text = "CUDA_ERROR_INVALID_IMAGE"; break;
        case NOT_FOUND: *text = "CUDA_ERROR_NOT_FOUND"; break;
        case NOT_SUPPORTED: *text = "CUDA_ERROR_NOT_SUPPORTED"; break;
        default: *text = "an error of the CUDA emulator";
    }
    return SUCCESS;
}
API int cuGetErrorString(int status, const char **text) { return cuGetErrorName(status, text); }
