// The CUDA driver's interface over host memory and fibers: what cudarc, candle and this crate call.
//
// Work is put into streams (streams.h) and runs on the thread that waits for it. A fat binary from the
// stand-in nvcc names its source; a kernel is found by that and its name. Kernels of candle are known by
// name only: launching one is an error that says so.
#include "driver.h"
#include "memory.h"
#include "registry.h"
#include "streams.h"
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

using namespace emulator;

#define API extern "C" __attribute__((visibility("default")))

enum Status {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    FILE_NOT_FOUND = 301,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_ISOLATION = 905,
};

struct Module { std::string source; };
struct Function {
    std::string name;
    const Kernel *kernel;
};
// What a block may ask for in dynamic shared memory, where it was said. Of the kernel: of every handle.
static std::map<const Kernel *, unsigned> dynamic_limits;
constexpr unsigned SHARED_UNASKED = 48 * 1024;
using Clock = std::chrono::steady_clock;

std::recursive_mutex emulator::device;
static int context;

// The graph that this thread captures: what would wait for the device or change its memory at once is
// refused meanwhile, as the driver does in its thread-local mode, and ends the capture.
static thread_local Graph *mine = nullptr;
// Those of all threads: waiting for the whole context is refused while there is one, and ends them all.
static std::set<Graph *> captures;

static bool refused(Graph *capture = mine) {
    if (capture) capture->invalid = true;
    return capture;
}
static Graph *captured(void *stream) {
    auto known = stream_of(stream);
    return known ? known->capture.get() : nullptr;
}
// Of an ended capture nothing more is taken.
static bool ended(void *stream) {
    const Graph *capture = captured(stream);
    return capture && capture->invalid;
}

// Once there is a file of the name in EMULATOR_LOST: a launch has read where nothing is. From then on nothing
// runs, and every call in the context is refused with what that launch did, those that give back too.
bool emulator::lost() {
    static const char *const name = getenv("EMULATOR_LOST");
    static bool gone = false;
    if (name && !gone) gone = access(name, F_OK) == 0;
    return gone;
}

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
        case 8: *value = SHARED_UNASKED; break; // shared memory per block
        case 10: *value = 32; break;            // warp size
        case 13: *value = 1000000; break;       // clock rate, kHz
        case 16: *value = 4; break;             // multiprocessors
        case 38: *value = 50 << 20; break;      // L2 cache
        case 39: *value = 2048; break;          // threads per multiprocessor
        case 75: *value = capability() / 10; break;  // compute capability, major
        case 76: *value = capability() % 10; break;  // and minor
        case 81: *value = int(shared_limit()) + 1024; break;  // shared memory per multiprocessor
        case 97: *value = int(shared_limit()); break;         // shared memory per block, at most
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
API int cuCtxSynchronize() {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    for (Graph *capture : captures) refused(capture);
    if (!captures.empty()) return CAPTURE_UNSUPPORTED;
    run_everything();
    return SUCCESS;
}

API int cuStreamCreate(void **stream, unsigned) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    *stream = create_stream();
    return SUCCESS;
}
API int cuStreamCreateWithPriority(void **stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
API int cuStreamDestroy_v2(void *stream) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    destroy_stream(stream);
    return SUCCESS;
}
API int cuStreamSynchronize(void *handle) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    auto stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (refused(stream->capture.get())) return CAPTURE_UNSUPPORTED;
    if (handle == (void *)0 || handle == (void *)1)
        run_everything();
    else
        run_all(*stream);
    return SUCCESS;
}
API int cuStreamQuery(void *handle) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    auto stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (refused(stream->capture.get())) return CAPTURE_UNSUPPORTED;
    if (stream->done == stream->put) return SUCCESS;
    run_until(*stream, stream->done + 1);  // who asks again and again sees it go on
    return NOT_READY;
}
API int cuStreamWaitEvent(void *stream, void *e, unsigned) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    auto *event = (Event *)e;
    if (!event->stream) return SUCCESS;  // never recorded: nothing to wait for
    if (ended(stream)) return CAPTURE_INVALIDATED;
    if (refused(captured(stream))) return CAPTURE_ISOLATION;  // for an event of before the capture
    put(stream, [behind = event->stream, position = event->position] { run_until(*behind, position); });
    return SUCCESS;
}
API int cuStreamIsCapturing(void *stream, int *status) {
    Lock lock(device);
    *status = captured(stream) ? ended(stream) ? 2 : 1 : 0;
    return SUCCESS;
}
API int cuStreamBeginCapture_v2(void *handle, int mode) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    auto stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (getenv("EMULATOR_NO_CAPTURE")) {
        fprintf(stderr, "cuda emulator: asked to capture\n");
        return NOT_SUPPORTED;
    }
    if (handle == (void *)0 || handle == (void *)1) return CAPTURE_UNSUPPORTED;
    if (stream->capture || mine || mode != 1) return ILLEGAL_STATE;  // 1: thread-local
    stream->capture = std::make_shared<Graph>();
    mine = stream->capture.get();
    captures.insert(mine);
    return SUCCESS;
}
API int cuStreamEndCapture(void *handle, void **graph) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    auto stream = stream_of(handle);
    *graph = nullptr;
    if (!stream || !stream->capture || stream->capture.get() != mine) return ILLEGAL_STATE;
    const auto captured = std::move(stream->capture);
    stream->capture = nullptr;
    captures.erase(mine);
    mine = nullptr;
    if (captured->invalid) return CAPTURE_INVALIDATED;
    // The driver would take it, and refuse to start it a second time.
    if (!captured->live.empty()) fprintf(stderr, "cuda emulator: captured memory is not freed again\n");
    if (!captured->live.empty()) return ILLEGAL_STATE;
    *graph = new std::shared_ptr<Graph>(captured);
    return SUCCESS;
}
API int cuGraphInstantiateWithFlags(void **started, void *graph, unsigned long long) {
    *started = new std::shared_ptr<Graph>(*(std::shared_ptr<Graph> *)graph);
    return SUCCESS;
}
API int cuGraphDestroy(void *graph) { Lock lock(device); delete (std::shared_ptr<Graph> *)graph; return lost() ? ILLEGAL_ADDRESS : SUCCESS; }
API int cuGraphExecDestroy(void *graph) { return cuGraphDestroy(graph); }
API int cuGraphUpload(void *, void *) { return SUCCESS; }
API int cuGraphLaunch(void *graph, void *stream) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    if (ended(stream)) return CAPTURE_INVALIDATED;
    put(stream, [graph = *(std::shared_ptr<Graph> *)graph] {
        for (const auto &work : graph->work) work();
    });
    return SUCCESS;
}
API int cuEventCreate(void **event, unsigned) { *event = new Event; return SUCCESS; }
API int cuEventDestroy_v2(void *event) { Lock lock(device); delete (Event *)event; return lost() ? ILLEGAL_ADDRESS : SUCCESS; }
API int cuEventRecord(void *e, void *handle) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    auto *event = (Event *)e;
    if (ended(handle)) return CAPTURE_INVALIDATED;
    if (refused(captured(handle))) return CAPTURE_UNSUPPORTED;
    event->stream = stream_of(handle);
    if (!event->stream) return INVALID_HANDLE;
    event->time = std::make_shared<Clock::time_point>();
    put(handle, [time = event->time] { *time = Clock::now(); });
    event->position = event->stream->put;
    return SUCCESS;
}
API int cuEventSynchronize(void *e) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    auto *event = (Event *)e;
    if (event->stream) run_until(*event->stream, event->position);
    return SUCCESS;
}
API int cuEventQuery(void *e) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    auto *event = (Event *)e;
    if (!event->stream || event->stream->done >= event->position) return SUCCESS;
    run_until(*event->stream, event->stream->done + 1);
    return NOT_READY;
}
API int cuEventElapsedTime(float *ms, void *start, void *end) {
    Lock lock(device);
    if (cuEventQuery(start) != SUCCESS || cuEventQuery(end) != SUCCESS) return NOT_READY;
    auto *from = (Event *)start, *to = (Event *)end;
    if (!from->time || !to->time) return INVALID_HANDLE;
    *ms = std::chrono::duration<float, std::milli>(*to->time - *from->time).count();
    return SUCCESS;
}
API int cuEventElapsedTime_v2(float *ms, void *start, void *end) { return cuEventElapsedTime(ms, start, end); }

API int cuMemGetInfo_v2(size_t *free, size_t *total) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    memory_info(free, total);
    return SUCCESS;
}
API int cuMemAlloc_v2(void **pointer, size_t bytes) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    if (refused()) return CAPTURE_UNSUPPORTED;
    if (bytes == 0) return INVALID_VALUE;
    *pointer = allocate(bytes);
    return *pointer ? SUCCESS : OUT_OF_MEMORY;
}
API int cuMemAllocAsync(void **pointer, size_t bytes, void *stream) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    if (ended(stream)) return CAPTURE_INVALIDATED;
    if (bytes == 0) return INVALID_VALUE;
    *pointer = allocate(bytes);
    if (!*pointer) return OUT_OF_MEMORY;
    if (Graph *graph = captured(stream)) {
        graph->memory.push_back(*pointer);
        graph->live.insert(*pointer);
        put(stream, [pointer = *pointer] { permit(pointer); });
    }
    return SUCCESS;
}
API int cuMemFree_v2(void *pointer) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    if (refused()) return CAPTURE_UNSUPPORTED;
    run_everything();
    return !pointer || release(pointer) ? SUCCESS : INVALID_VALUE;
}
API int cuMemFreeAsync(void *pointer, void *stream) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    if (!pointer) return SUCCESS;
    if (ended(stream)) return CAPTURE_INVALIDATED;
    if (!allocated(pointer, 1)) return INVALID_VALUE;
    if (Graph *graph = captured(stream)) {
        if (!graph->live.erase(pointer)) {
            fprintf(stderr, "cuda emulator: memory of before the capture is freed in it\n");
            refused(graph);
            return INVALID_VALUE;
        }
        put(stream, [pointer] { forbid(pointer); });
        return SUCCESS;
    }
    put(stream, [pointer] {
        if (!release(pointer)) fail("memory was freed twice");
    });
    return SUCCESS;
}
// Memory pools: nothing is kept, so there is nothing to set or to give back.
API int cuDeviceGetMemPool(void **pool, int) { *pool = &context; return SUCCESS; }
API int cuDeviceGetDefaultMemPool(void **pool, int) { *pool = &context; return SUCCESS; }
API int cuMemPoolSetAttribute(void *, int, void *) { return SUCCESS; }
API int cuMemPoolTrimTo(void *, size_t) { return SUCCESS; }

// Host memory that the device reads and writes by itself.
static std::map<char *, size_t> pinned;

static bool is_pinned(const void *pointer, size_t bytes) {
    auto next = pinned.upper_bound((char *)pointer);
    if (next == pinned.begin()) return false;
    const auto &[start, size] = *--next;
    return (const char *)pointer + bytes <= start + size;
}
API int cuMemHostAlloc(void **pointer, size_t bytes, unsigned) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    *pointer = malloc(bytes);
    if (!*pointer) return OUT_OF_MEMORY;
    memset(*pointer, 0xff, bytes);
    pinned[(char *)*pointer] = bytes;
    return SUCCESS;
}
API int cuMemAllocHost_v2(void **pointer, size_t bytes) { return cuMemHostAlloc(pointer, bytes, 0); }
API int cuMemFreeHost(void *pointer) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    auto found = pinned.find((char *)pointer);
    if (found == pinned.end()) return INVALID_VALUE;
    // What was still to be transferred carries this.
    memset(pointer, 0xff, found->second);
    run_everything();
    pinned.erase(found);
    free(pointer);
    return SUCCESS;
}
API int cuMemHostRegister_v2(void *pointer, size_t bytes, unsigned) { Lock lock(device); pinned[(char *)pointer] = bytes; return SUCCESS; }
API int cuMemHostUnregister(void *pointer) { Lock lock(device); run_everything(); return pinned.erase((char *)pointer) ? SUCCESS : INVALID_VALUE; }

// Looked at again when the work is done: by then the memory may be gone.
static void *still_there(void *pointer, size_t bytes) {
    if (bytes && !allocated(pointer, bytes)) fail("a transfer to or from memory that was freed");
    return pointer;
}
static const void *still_there(const void *pointer, size_t bytes) {
    return still_there(const_cast<void *>(pointer), bytes);
}

API int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    if (ended(stream)) return CAPTURE_INVALIDATED;
    if (refused(captured(stream))) return CAPTURE_UNSUPPORTED;
    if (bytes && !allocated(to, bytes)) return INVALID_VALUE;
    if (is_pinned(from, bytes)) {
        put(stream, [=] { memcpy(still_there(to, bytes), from, bytes); });
    } else {  // ordinary memory is read before the call returns
        const std::string copy((const char *)from, bytes);
        put(stream, [=] { memcpy(still_there(to, copy.size()), copy.data(), copy.size()); });
    }
    return SUCCESS;
}
API int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    if (ended(stream)) return CAPTURE_INVALIDATED;
    if (refused(captured(stream))) return CAPTURE_UNSUPPORTED;
    if (bytes && !allocated(from, bytes)) return INVALID_VALUE;
    put(stream, [=] { memcpy(to, still_there(from, bytes), bytes); });
    // Ordinary memory is written before the call returns.
    return is_pinned(to, bytes) ? SUCCESS : cuStreamSynchronize(stream);
}
API int cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    if (ended(stream)) return CAPTURE_INVALIDATED;
    if (bytes && (!allocated(to, bytes) || !allocated(from, bytes))) return INVALID_VALUE;
    put(stream, [=] { memmove(still_there(to, bytes), still_there(from, bytes), bytes); });
    return SUCCESS;
}
API int cuMemsetD8Async(void *to, unsigned char value, size_t bytes, void *stream) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    if (ended(stream)) return CAPTURE_INVALIDATED;
    if (bytes && !allocated(to, bytes)) return INVALID_VALUE;
    put(stream, [=] { memset(still_there(to, bytes), value, bytes); });
    return SUCCESS;
}
API int cuMemcpyHtoD_v2(void *to, const void *from, size_t bytes) { return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr); }
API int cuMemcpyDtoH_v2(void *to, const void *from, size_t bytes) { return cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr); }
API int cuMemcpyDtoD_v2(void *to, const void *from, size_t bytes) { return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr); }
API int cuMemsetD8_v2(void *to, unsigned char value, size_t bytes) { return cuMemsetD8Async(to, value, bytes, nullptr); }
API int cuMemcpyPeerAsync(...) { return NOT_SUPPORTED; }

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
API int cuFuncSetAttribute(void *f, int attribute, int value) {
    Lock lock(device);
    if (attribute != 8) return NOT_SUPPORTED;  // dynamic shared memory, at most
    if (value < 0 || unsigned(value) > shared_limit()) return INVALID_VALUE;
    dynamic_limits[((Function *)f)->kernel] = unsigned(value);
    return SUCCESS;
}
API int cuFuncGetAttribute(int *value, int, void *) { *value = 0; return SUCCESS; }
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *, int, size_t) { *blocks = 1; return SUCCESS; }
API int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                       unsigned bz, unsigned shared, void *stream, void **arguments, void **) {
    Lock lock(device);
    if (lost()) return ILLEGAL_ADDRESS;
    if (ended(stream)) return CAPTURE_INVALIDATED;
    auto *function = (Function *)f;
    const uint64_t threads = uint64_t(bx) * by * bz;
    if (!gx || !gy || !gz || !threads || threads > 1024 || bz > 64 || gx > 0x7fffffff ||
        gy > 65535 || gz > 65535)
        return INVALID_VALUE;
    const Kernel *kernel = function->kernel;
    const auto said = dynamic_limits.find(kernel);
    if (shared > (said == dynamic_limits.end() ? SHARED_UNASKED : said->second)) return INVALID_VALUE;
    if (!kernel) {
        fprintf(stderr, "cuda emulator: no body for the kernel %s, which is not ours\n", function->name.c_str());
        return NOT_SUPPORTED;
    }
    const char *set = getenv("EMULATOR_ORDER");
    const Order order = set && !strcmp(set, "descending") ? Order::descending : Order::ascending;
    put(stream, [=, name = function->name, run = kernel->bind(arguments)] {
        launch(name.c_str(), dim3(gx, gy, gz), dim3(bx, by, bz), kernel->shared_start, kernel->shared_end,
               shared, order, run);
    });
    return SUCCESS;
}

API int cuGetErrorName(int status, const char **text) {
    switch (status) {
        case SUCCESS: *text = "CUDA_SUCCESS"; break;
        case INVALID_VALUE: *text = "CUDA_ERROR_INVALID_VALUE"; break;
        case OUT_OF_MEMORY: *text = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case INVALID_DEVICE: *text = "CUDA_ERROR_INVALID_DEVICE"; break;
        case CAPTURE_UNSUPPORTED: *text = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"; break;
        case CAPTURE_INVALIDATED: *text = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"; break;
        case CAPTURE_ISOLATION: *text = "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"; break;
        case INVALID_HANDLE: *text = "CUDA_ERROR_INVALID_HANDLE"; break;
        case NOT_READY: *text = "CUDA_ERROR_NOT_READY"; break;
        case ILLEGAL_ADDRESS: *text = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
        case INVALID_IMAGE: *text = "CUDA_ERROR_INVALID_IMAGE"; break;
        case NOT_FOUND: *text = "CUDA_ERROR_NOT_FOUND"; break;
        case NOT_SUPPORTED: *text = "CUDA_ERROR_NOT_SUPPORTED"; break;
        default: *text = "an error of the CUDA emulator";
    }
    return SUCCESS;
}
API int cuGetErrorString(int status, const char **text) { return cuGetErrorName(status, text); }
