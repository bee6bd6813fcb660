// Runs the kernels of faults.cu through the driver's interface and looks at what the emulator makes of
// them. A fault that ends the process is provoked in a child.
#include "selftest.h"
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

extern "C" {
int cuInit(unsigned);
int cuMemGetInfo_v2(size_t *, size_t *);
int cuMemcpyHtoD_v2(void *, const void *, size_t);
int cuCtxSynchronize();
int cuMemAllocAsync(void **, size_t, void *);
int cuMemFreeAsync(void *, void *);
int cuMemHostAlloc(void **, size_t, unsigned);
int cuMemFreeHost(void *);
int cuMemcpyHtoDAsync_v2(void *, const void *, size_t, void *);
int cuMemcpyDtoHAsync_v2(void *, const void *, size_t, void *);
int cuStreamCreate(void **, unsigned);
int cuStreamDestroy_v2(void *);
int cuStreamSynchronize(void *);
int cuStreamWaitEvent(void *, void *, unsigned);
int cuMemcpyDtoDAsync_v2(void *, const void *, size_t, void *);
int cuStreamIsCapturing(void *, int *);
int cuStreamBeginCapture_v2(void *, int);
int cuStreamEndCapture(void *, void **);
int cuGraphInstantiateWithFlags(void **, void *, unsigned long long);
int cuGraphDestroy(void *);
int cuGraphExecDestroy(void *);
int cuGraphLaunch(void *, void *);
int cuEventCreate(void **, unsigned);
int cuEventDestroy_v2(void *);
int cuEventRecord(void *, void *);
int cuEventSynchronize(void *);
int cuEventQuery(void *);
}

int failures = 0;
const char *order;
static void *module;

void *function(void *module, const char *name) {
    void *function;
    if (cuModuleGetFunction(&function, module, name) != 0) abort();
    return function;
}

template <class... Args>
static int run(const char *name, unsigned grid, unsigned block, unsigned shared, Args... args) {
    return run_in(module, name, grid, block, shared, args...);
}

std::string dies(const std::function<void()> &fault) {
    int ends[2];
    if (pipe(ends) != 0) abort();
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        fault();
        _exit(0);
    }
    close(ends[1]);
    std::string said;
    char part[256];
    for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) said.append(part, size_t(n));
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) || WEXITSTATUS(status) ? said : "it survived: " + said;
}

bool has(const std::string &text, const char *part) {
    if (text.find(part) != std::string::npos) return true;
    printf("  not found: %s\n  in: %s\n", part, text.c_str());
    return false;
}

static void check_order() {
    float *x = device<float>(256), *out = device<float>(256);
    for (int i = 0; i < 256; i++) x[i] = float(i);
    CHECK(run("block_reduce", 1, 256, 0, x, out, 1) == 0);
    for (int i = 0; i < 256; i++) CHECK(out[i] == 255 * 128);
    // Without the barrier the first thread to run sees nothing but its own value.
    CHECK(run("block_reduce", 1, 256, 0, x, out, 0) == 0);
    int wrong = 0;
    for (int i = 0; i < 256; i++) wrong += std::isnan(out[i]);
    CHECK(wrong == 255);

    CHECK(run("reads_shared_memory_of_the_block_before", 2, 32, 0, out) == 0);
    CHECK(out[0] == 1 && std::isnan(out[1]));

    CHECK(run("loads_two", 1, 1, 0, x, out, 2) == 0 && out[0] == 5);
    CHECK(has(dies([&] { run("loads_two", 1, 1, 0, x, out, 1); }), "misaligned address"));
    CHECK(run("indexes_shared_memory", 1, 32, 0, out, 31) == 0 && out[0] == 1);
    CHECK(has(dies([&] { run("indexes_shared_memory", 1, 32, 0, out, 32); }), "out of bounds"));

    unsigned *u = device<unsigned>(256);
    CHECK(run("shuffles", 1, 32, 0, u) == 0);
    for (unsigned i = 0; i < 32; i++) {
        CHECK(u[i] == 5);
        CHECK(u[32 + i] == (i + 3 < 32 ? i + 3 : i));
        CHECK(u[64 + i] == (i >= 3 ? i - 3 : i));
        CHECK(u[96 + i] == (i ^ 1));
        CHECK(u[128 + i] == (i % 8 + 3 < 8 ? i + 3 : i));
        CHECK(u[160 + i] == 0x49249249u);
        CHECK(u[192 + i] == (i < 16 ? (i ^ 17) : (i ^ 16)));
        CHECK(u[224 + i] == 7);
    }
    CHECK(run("shuffle_from_an_absent_lane", 1, 32, 0, out) == 0);
    CHECK(std::isnan(out[0]) && std::isnan(out[15]));
    CHECK(run("a_lane_that_has_left", 1, 32, 0, out) == 0);
    CHECK(out[7] == 1 && std::isnan(out[8]));

    CHECK(has(dies([] { run("different_barriers", 1, 32, 0); }), "wait at different barriers"));
    CHECK(has(dies([] { run("half_a_warp_waits", 1, 32, 0); }), "no thread can go on"));
    CHECK(run("different_barriers", 1, 16, 0) == 0);

    CHECK(has(dies([&] { run("access", 1, 1, 0, x, 256, 0); }), "kernel access, block (0, 0, 0), thread (0, 0, 0)"));
    CHECK(has(dies([&] { run("access", 1, 1, 0, x, 256, 1); }), "1024 bytes from the start of an allocation of 1024"));
    CHECK(has(dies([&] { run("access", 1, 1, 0, x, -2000, 0); }), "no device memory"));
    CHECK(has(dies([&] { run("access", 1, 1, 0, (float *)nullptr, 0, 0); }), "no device memory"));
    // A write within the last 16 bytes is found when the memory is freed.
    CHECK(has(dies([] {
        float *y = device<float>(5);
        run("access", 1, 1, 0, y, 5, 1);
        cuMemFree_v2(y);
    }), "wrote before or behind device memory"));
    CHECK(has(dies([] {
        float *y = device<float>(5);
        cuMemFree_v2(y);
        run("access", 1, 1, 0, y, 0, 1);
    }), "no device memory"));
    CHECK(run("access", 1, 1025, 0, x, 0, 0) == 1);
    CHECK(run("access", 0, 1, 0, x, 0, 0) == 1);
    float *fresh = device<float>(3);
    CHECK(std::isnan(fresh[0]) && std::isnan(fresh[2]));
    CHECK(cuMemFree_v2(fresh + 1) == 1);
    CHECK(cuMemcpyHtoD_v2(fresh, x, 16) == 1);
    CHECK(cuMemcpyHtoD_v2(fresh, x, 12) == 0);
    size_t free_before, free_after, total;
    cuMemGetInfo_v2(&free_before, &total);
    CHECK(cuMemFree_v2(fresh) == 0);
    cuMemGetInfo_v2(&free_after, &total);
    CHECK(free_after == free_before + 12);
    void *huge;
    CHECK(cuMemAlloc_v2(&huge, total + 1) == 2);

    // A product through the fragments against the plain one.
    uint16_t *a = device<uint16_t>(256), *b = device<uint16_t>(128);
    float *d = device<float>(128);
    const auto small = [](int v) { const float f = float(v); uint32_t u; memcpy(&u, &f, 4); return uint16_t(u >> 16); };
    for (int i = 0; i < 256; i++) a[i] = small(i * 7 % 23 - 11);
    for (int i = 0; i < 128; i++) b[i] = small(i * 5 % 19 - 9);
    CHECK(run("product", 1, 96, 0, d, a, b) == 0);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            int sum = 0;
            for (int k = 0; k < 16; k++) sum += ((i * 16 + k) * 7 % 23 - 11) * ((k * 8 + j) * 5 % 19 - 9);
            CHECK(d[i * 8 + j] == float(2 * sum));
        }

    const size_t codes = 65536;
    float *bf16 = device<float>(codes), *half = device<float>(codes), *e4m3 = device<float>(256);
    float *e8m0 = device<float>(256), *fp4 = device<float>(512);
    unsigned *changed = device<unsigned>(codes);
    CHECK(run("formats", codes / 256, 256, 0, bf16, e4m3, half, e8m0, fp4, changed) == 0);
    for (size_t i = 0; i < codes; i++)
        if (changed[i]) printf("  code %zx: %x\n", i, changed[i]);
    for (size_t i = 0; i < codes; i++) CHECK(changed[i] == 0);
    CHECK(bf16[0x3fc0] == 1.5f && half[0x3e00] == 1.5f && half[0x7bff] == 65504.0f && half[1] == ldexpf(1, -24));
    CHECK(e4m3[0x7e] == 448.0f && e4m3[1] == ldexpf(1, -9) && std::isnan(e4m3[0x7f]) && e4m3[0xb8] == -1.0f);
    CHECK(e8m0[127] == 1 && e8m0[0] == ldexpf(1, -127) && e8m0[254] == ldexpf(1, 127) && std::isnan(e8m0[255]));
    CHECK(fp4[2 * 0xe7] == 6.0f && fp4[2 * 0xe7 + 1] == -4.0f);
    for (void *p : {(void *)x, (void *)out, (void *)u, (void *)a, (void *)b, (void *)d, (void *)bf16,
                    (void *)half, (void *)e4m3, (void *)e8m0, (void *)fp4, (void *)changed})
        CHECK(cuMemFree_v2(p) == 0);
}

// What a stream does late, and what waits for it.
static void check_streams() {
    void *first, *second, *event, *host;
    cuStreamCreate(&first, 0);
    cuStreamCreate(&second, 0);
    cuEventCreate(&event, 0);
    cuMemHostAlloc(&host, 4, 0);
    float *pinned = (float *)host, *x = device<float>(1), *y = device<float>(1), read = 0;
    // Pinned memory that is written again too early arrives as it is now, ordinary memory as it was.
    *pinned = 1;
    cuMemcpyHtoDAsync_v2(x, pinned, 4, first);
    float plain = 3;
    cuMemcpyHtoDAsync_v2(y, &plain, 4, first);
    cuEventRecord(event, first);
    CHECK(cuEventQuery(event) == 600);
    *pinned = 2, plain = 4;
    // The other stream does not wait, and finds nothing; then it does.
    cuMemcpyDtoHAsync_v2(&read, y, 4, second);
    CHECK(std::isnan(read));
    cuStreamWaitEvent(second, event, 0);
    cuMemcpyDtoHAsync_v2(&read, y, 4, second);
    CHECK(read == 3 && cuEventQuery(event) == 0);
    cuMemcpyDtoHAsync_v2(&read, x, 4, second);
    CHECK(read == 2 || read == 1);
    // To pinned memory, when it was waited for.
    *pinned = 0;
    cuMemcpyDtoHAsync_v2(pinned, y, 4, first);
    CHECK(*pinned == 0);
    cuStreamSynchronize(first);
    CHECK(*pinned == 3);
    // Freed in order: not before what was put there earlier, not after.
    cuMemFreeAsync(y, first);
    CHECK(*y == 3);
    cuEventRecord(event, first);
    cuEventSynchronize(event);
    CHECK(has(dies([&] { run("access", 1, 1, 0, y, 0, 1); }), "no device memory"));
    CHECK(has(dies([&] { cuMemFreeAsync(x, first), cuMemFreeAsync(x, first), cuStreamSynchronize(first); }), "freed twice"));
    CHECK(has(dies([&] {
        void *gone = device<float>(1);
        cuMemFreeAsync(gone, first);
        if (cuMemcpyDtoHAsync_v2(pinned, gone, 4, first) == 0) cuStreamSynchronize(first);
    }), "memory that was freed"));
    // Each thread's own stream.
    void *own = (void *)2;
    *x = 5;
    *pinned = 6;
    cuMemcpyHtoDAsync_v2(x, pinned, 4, own);
    std::thread([&] { cuStreamSynchronize((void *)2); }).join();
    CHECK(*x == 5);
    cuStreamSynchronize(own);
    CHECK(*x == 6);
    CHECK(cuMemFree_v2(x) == 0 && cuMemFreeHost(pinned) == 0);
    cuEventDestroy_v2(event);
    cuStreamDestroy_v2(first);
    cuStreamDestroy_v2(second);
}

// What is recorded runs when it is started, every time anew; what cannot be recorded is refused.
static void check_captures() {
    enum { UNSUPPORTED = 900, INVALIDATED = 901, ISOLATION = 905 };
    void *stream, *other, *graph, *started, *event, *temporary;
    cuStreamCreate(&stream, 0);
    cuStreamCreate(&other, 0);
    cuEventCreate(&event, 0);
    cuEventRecord(event, other);
    float *x = device<float>(1), *y = device<float>(1);
    const auto begin = [&] { return cuStreamBeginCapture_v2(stream, 1); };
    const auto refuses = [&](int status, int expected) {
        return status == expected && cuStreamEndCapture(stream, &graph) == INVALIDATED && !graph;
    };
    int capturing;
    CHECK(begin() == 0 && begin() == 401);
    cuStreamIsCapturing(stream, &capturing);
    CHECK(capturing == 1);
    CHECK(cuMemAllocAsync(&temporary, 4, stream) == 0);
    CHECK(cuMemcpyDtoDAsync_v2(temporary, x, 4, stream) == 0);
    CHECK(cuMemcpyDtoDAsync_v2(y, temporary, 4, stream) == 0);
    CHECK(cuMemFreeAsync(temporary, stream) == 0);
    CHECK(cuStreamEndCapture(stream, &graph) == 0 && graph);
    CHECK(cuGraphInstantiateWithFlags(&started, graph, 0) == 0 && cuGraphDestroy(graph) == 0);
    cuStreamSynchronize(stream);
    CHECK(std::isnan(*y));
    for (const float value : {1.0f, 2.0f}) {
        *x = value;
        CHECK(cuGraphLaunch(started, other) == 0);
        cuStreamSynchronize(other);
        CHECK(*y == value);
    }
    // Memory of a recording is there only while it runs.
    CHECK(has(dies([&] { run("access", 1, 1, 0, temporary, 0, 1); }), "no device memory"));
    cuGraphLaunch(started, other);
    CHECK(cuGraphExecDestroy(started) == 0);
    cuStreamSynchronize(other);

    CHECK(begin() == 0 && refuses(cuStreamSynchronize(stream), UNSUPPORTED));
    CHECK(begin() == 0 && refuses(cuMemcpyHtoDAsync_v2(x, &capturing, 4, stream), UNSUPPORTED));
    CHECK(begin() == 0 && refuses(cuMemcpyDtoHAsync_v2(&capturing, x, 4, stream), UNSUPPORTED));
    CHECK(begin() == 0 && refuses(cuMemAlloc_v2(&temporary, 4), UNSUPPORTED));
    CHECK(begin() == 0 && refuses(cuMemFree_v2(x), UNSUPPORTED));
    CHECK(begin() == 0 && refuses(cuMemFreeAsync(x, stream), 1));
    CHECK(begin() == 0 && refuses(cuStreamWaitEvent(stream, event, 0), ISOLATION));
    CHECK(begin() == 0 && cuMemAllocAsync(&temporary, 4, stream) == 0);  // and not freed
    CHECK(cuStreamEndCapture(stream, &graph) == 401 && !graph);
    // Another thread goes on as before.
    CHECK(begin() == 0);
    std::thread([&] { CHECK(cuMemAlloc_v2(&temporary, 4) == 0 && cuMemFree_v2(temporary) == 0); }).join();
    CHECK(cuStreamEndCapture(stream, &graph) == 0 && cuGraphDestroy(graph) == 0);
    // It may do this much, and nothing is spoilt by it.
    CHECK(begin() == 0);
    std::thread([&] {
        void *theirs, *memory, *pinned, *mark;
        CHECK(cuStreamCreate(&theirs, 0) == 0 && cuEventCreate(&mark, 0) == 0);
        CHECK(cuMemHostAlloc(&pinned, 4, 0) == 0 && cuMemAllocAsync(&memory, 4, theirs) == 0);
        CHECK(cuMemcpyHtoDAsync_v2(memory, pinned, 4, theirs) == 0);
        CHECK(cuMemcpyDtoHAsync_v2(pinned, memory, 4, theirs) == 0);
        CHECK(cuEventRecord(mark, theirs) == 0 && cuStreamWaitEvent((void *)2, mark, 0) == 0);
        CHECK(cuEventSynchronize(mark) == 0 && cuMemFreeAsync(memory, theirs) == 0);
        for (void *one : {theirs, (void *)0, (void *)2}) CHECK(cuStreamSynchronize(one) == 0);
        CHECK(cuMemFreeHost(pinned) == 0 && cuEventDestroy_v2(mark) == 0 && cuStreamDestroy_v2(theirs) == 0);
    }).join();
    CHECK(cuStreamEndCapture(stream, &graph) == 0 && cuGraphDestroy(graph) == 0);
    // Waiting for the whole context is refused, whoever asks, and spoils all that is captured in it.
    CHECK(begin() == 0 && cuMemAllocAsync(&temporary, 4, stream) == 0);
    std::thread([&] {
        void *theirs;
        cuStreamCreate(&theirs, 0);
        CHECK(cuStreamBeginCapture_v2(theirs, 1) == 0);
        std::thread([] { CHECK(cuCtxSynchronize() == UNSUPPORTED); }).join();
        void *none;
        CHECK(cuStreamEndCapture(theirs, &none) == INVALIDATED && !none);
        cuStreamDestroy_v2(theirs);
    }).join();
    cuStreamIsCapturing(stream, &capturing);
    CHECK(capturing == 2);
    CHECK(cuMemFreeAsync(temporary, stream) == INVALIDATED);
    CHECK(cuMemAllocAsync(&temporary, 4, stream) == INVALIDATED);
    CHECK(refuses(cuMemcpyDtoDAsync_v2(y, x, 4, stream), INVALIDATED));
    CHECK(begin() == 0 && refuses(cuCtxSynchronize(), UNSUPPORTED) && cuCtxSynchronize() == 0);
    setenv("EMULATOR_NO_CAPTURE", "1", 1);
    CHECK(begin() == 801 && cuStreamEndCapture(stream, &graph) == 401);
    unsetenv("EMULATOR_NO_CAPTURE");
    CHECK(cuMemFree_v2(x) == 0 && cuMemFree_v2(y) == 0);
    cuEventDestroy_v2(event);
    cuStreamDestroy_v2(stream);
    cuStreamDestroy_v2(other);
}

// Runs this program again as it is on another device, whose limits are read once.
static bool on_device(const char *capability, const char *kib) {
    setenv("EMULATOR_CAPABILITY", capability, 1);
    setenv("EMULATOR_SHARED_KIB", kib, 1);
    const pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "selftest", capability, kib, nullptr);
        abort();
    }
    int status;
    waitpid(child, &status, 0);
    return status == 0;
}

int main(int count, char **arguments) {
    cuInit(0);
    if (cuModuleLoadData(&module, "EMULATED faults.cu") != 0) abort();
    for (const char *o : {"ascending", "descending"}) {
        order = o;
        setenv("EMULATOR_ORDER", o, 1);
        if (count == 3) {
            check_smaller_device(int(10 * atof(arguments[1])), atoi(arguments[2]));
            check_wgmma_is_missing();
            continue;
        }
        check_order();
        check_streams();
        check_captures();
        check_async();
        check_wgmma();
    }
    if (count == 3) return failures != 0;
    CHECK(on_device("8.0", "163") && on_device("12.0", "99"));
    printf("%s\n", failures ? "the emulator is broken" : "the emulator notices every planted fault");
    return failures != 0;
}
