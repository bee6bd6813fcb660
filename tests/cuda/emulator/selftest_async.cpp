// Copies that arrive late, barriers and dynamic shared memory.
#include "selftest.h"

static void *module;

template <class... Args> static int run(const char *name, unsigned block, unsigned shared, Args... args) {
    return run_in(module, name, 1, block, shared, args...);
}

// What becomes of `pipeline` with that fault: a message, or that its results are wrong.
static std::string pipeline(int fault, int tiles = 5) {
    float *x = device<float>(size_t(tiles) * 96), *out = device<float>(96);
    for (int i = 0; i < tiles * 96; i++) x[i] = float(i);
    const std::string said = dies([&] {
        if (run("pipeline", 128, 2 * 384 + 32, x, out, tiles, fault) != 0) fputs("not started", stderr);
        for (int t = 0; t < 96; t++) {
            const int right = tiles * t + 96 * (tiles * (tiles - 1) / 2);
            if (out[t] != float(right)) return void(fputs("wrong results", stderr));
        }
        fputs("right", stderr);
    });
    cuMemFree_v2(x), cuMemFree_v2(out);
    return said;
}

static void check_pipeline() {
    enum { NONE, WRONG_PHASE, NO_WAIT, REUSED_EARLY, TOO_MANY, NOBODY_ARRIVES, NOBODY_WAITS, MISALIGNED,
           BEYOND, FEWER, MORE, NO_BARRIER, OVERWRITTEN, AGAIN, NO_PARITY, NO_FENCE, POLLED, COPIED_TWICE };
    for (const int tiles : {1, 2, 3, 5, 8}) CHECK(has(pipeline(NONE, tiles), "it survived: right"));
    CHECK(has(pipeline(POLLED), "it survived: right"));
    for (const int fault : {WRONG_PHASE, NO_WAIT, REUSED_EARLY})
        CHECK(pipeline(fault).find("survived: right") == std::string::npos);
    // At once, or when the phases have gone ahead of the threads.
    CHECK(has(pipeline(TOO_MANY), strcmp(order, "ascending") ? "no thread can go on" : "more arrivals than the barrier counts"));
    CHECK(has(pipeline(NOBODY_ARRIVES), "1 threads wait for parity 0 of the barrier at 1800, whose phase 0 lacks 3 of 3 arrivals and 0 bytes"));
    CHECK(has(pipeline(COPIED_TWICE), "still under way"));
    CHECK(has(pipeline(NOBODY_WAITS), "nobody waited for"));
    CHECK(has(pipeline(MISALIGNED), "not multiples of 16"));
    CHECK(has(pipeline(BEYOND), "no device memory"));
    CHECK(has(pipeline(FEWER), "more bytes arrived than the barrier expected"));
    CHECK(has(pipeline(MORE), "lacks 0 of 1 arrivals and 16 bytes"));
    CHECK(has(pipeline(NO_BARRIER), "no barrier was initialised here"));
    CHECK(has(pipeline(OVERWRITTEN), "wrote to the memory of a barrier"));
    CHECK(has(pipeline(AGAIN), "initialised again"));
    CHECK(has(pipeline(NO_PARITY), "a parity is 0 or 1"));
    CHECK(has(pipeline(NO_FENCE), "without proxy_fence between"));
    float *x = device<float>(4), *out = device<float>(2);
    x[0] = 3;
    CHECK(run("before_and_after", 1, 0, x, out) == 0 && std::isnan(out[0]) && out[1] == 3);
    cuMemFree_v2(x), cuMemFree_v2(out);
}

static void check_copies_of_16() {
    enum { NOT, ALL_BUT_ONE, ALL, BARRIER, ARRIVE_ONLY, TOO_LATE };
    float *x = device<float>(256), *out = device<float>(256);
    for (int i = 0; i < 256; i++) x[i] = float(i);
    CHECK(run("copies_of_16", 32, 0, x, out, ALL, 0) == 0);
    for (int i = 0; i < 256; i++) CHECK(out[i] == float(i));
    CHECK(run("copies_of_16", 32, 0, x, out, BARRIER, 0) == 0);
    for (int i = 0; i < 256; i++) CHECK(out[i] == float(i));
    CHECK(run("copies_of_16", 32, 0, x, out, TOO_LATE, 0) == 0);
    for (int i = 0; i < 256; i++) CHECK(std::isnan(out[i]));
    for (const int wait : {NOT, ALL_BUT_ONE, ARRIVE_ONLY})
        CHECK(has(dies([&] { run("copies_of_16", 32, 0, x, out, wait, 0); }), "nobody waited for"));
    CHECK(has(dies([&] { run("copies_of_16", 32, 0, x, out, ALL, 1); }), "misaligned"));
    cuMemFree_v2(x), cuMemFree_v2(out);
}

static void check_dynamic() {
    enum { OPT_IN = 97, MAX_DYNAMIC = 8, INVALID_VALUE = 1 };
    uint32_t *out = device<uint32_t>(34);
    for (const int bytes : {128, 1000, 1024, 48 * 1024}) {
        CHECK(run("dynamic", 32, unsigned(bytes), out, bytes, 0, 1, 0) == 0);
        CHECK(out[0] == 0 && out[1] == 0 && out[2] == 31 && out[33] == 0);
        CHECK(has(dies([&] { run("dynamic", 32, unsigned(bytes), out, bytes, bytes, 1, 0); }), "outside shared memory"));
        CHECK(has(dies([&] { run("dynamic", 32, unsigned(bytes), out, bytes, (bytes + 1023) / 1024 * 1024, 0, 0); }), "no device memory"));
        if (bytes % 1024) CHECK(has(dies([&] { run("dynamic", 32, unsigned(bytes), out, bytes, bytes, 0, 1); }), "behind the dynamic shared memory"));
    }
    CHECK(has(dies([&] { run("dynamic", 32, 128, out, 128, 2, 1, 0); }), "misaligned"));
    int most;
    cuDeviceGetAttribute(&most, OPT_IN, 0);
    void *kernel = function(module, "dynamic");
    CHECK(run("dynamic", 32, 48 * 1024 + 4, out, 128, 0, 1, 0) == INVALID_VALUE);
    CHECK(cuFuncSetAttribute(kernel, MAX_DYNAMIC, most + 1) == INVALID_VALUE);
    CHECK(cuFuncSetAttribute(kernel, MAX_DYNAMIC, most) == 0);
    CHECK(run("dynamic", 32, unsigned(most), out, most, most - 4, 1, 0) == 0 && out[0] == 0xffffffffu);
    CHECK(run("dynamic", 32, unsigned(most) + 4, out, 128, 0, 1, 0) == INVALID_VALUE);
    CHECK(cuFuncSetAttribute(kernel, MAX_DYNAMIC, 48 * 1024) == 0);
    CHECK(run("dynamic", 32, unsigned(most), out, most, 0, 1, 0) == INVALID_VALUE);
    CHECK(has(dies([&] { run("traps", 1, 0, (void *)device<long long>(2)); }), "the kernel trapped"));
    cuMemFree_v2(out);
}

void check_async() {
    if (!module && cuModuleLoadData(&module, "EMULATED faults_async.cu") != 0) abort();
    check_pipeline();
    check_copies_of_16();
    check_dynamic();
}

// In a process that was started with another EMULATOR_CAPABILITY and EMULATOR_SHARED_KIB.
void check_smaller_device(int capability, int kib) {
    if (cuModuleLoadData(&module, "EMULATED faults_async.cu") != 0) abort();
    int value;
    CHECK(cuDeviceGetAttribute(&value, 97, 0) == 0 && value == kib * 1024);
    CHECK(cuDeviceGetAttribute(&value, 75, 0) == 0 && value == capability / 10);
    CHECK(cuDeviceGetAttribute(&value, 76, 0) == 0 && value == capability % 10);
    CHECK(has(pipeline(0), capability < 90 ? "illegal instruction" : "it survived: right"));
    check_copies_of_16();
    check_dynamic();
}
