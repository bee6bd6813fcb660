// Products of a warpgroup.
#include "selftest.h"

static void *module;

// What becomes of the product of that many columns with that fault.
static std::string product(int columns, int fault) {
    const size_t n = size_t(columns);
    uint16_t *a = device<uint16_t>(64 * 64), *b = device<uint16_t>(n * 64);
    float *out = device<float>(64 * n);
    const auto value_of_a = [](int i) { return i * 7 % 23 - 11; };
    const auto value_of_b = [](int i) { return i * 5 % 19 - 9; };
    const auto bf16 = [](int v) { const float f = float(v); uint32_t u; memcpy(&u, &f, 4); return uint16_t(u >> 16); };
    for (int i = 0; i < 64 * 64; i++) a[i] = bf16(value_of_a(i));
    for (int i = 0; i < columns * 64; i++) b[i] = bf16(value_of_b(i));
    const std::string name = "multiply_" + std::to_string(columns);
    const std::string said = dies([&] {
        if (run_in(module, name.c_str(), 1, 128, unsigned(columns) * 128 + 512, out, a, b, fault) != 0) fputs("not started", stderr);
        for (int i = 0; i < 64; i++)
            for (int j = 0; j < columns; j++) {
                int sum = 0;
                for (int k = 0; k < 64; k++) sum += value_of_a(i * 64 + k) * value_of_b(j * 64 + k);
                if (out[i * columns + j] != float(sum)) return void(fputs("wrong results", stderr));
            }
        fputs("right", stderr);
    });
    cuMemFree_v2(a), cuMemFree_v2(b), cuMemFree_v2(out);
    return said;
}

void check_wgmma() {
    enum { NONE, NO_FENCE, NO_COMMIT, NO_WAIT, READ_BEFORE_WAIT, SETTLED_BEFORE_WAIT, A_REWRITTEN, SUMS_REWRITTEN,
           B_REUSED, NO_PROXY_FENCE, WRONG_SWIZZLE, WRONG_DESCRIPTOR, LANES_DIFFER, WARPS_DIFFER, ONE_WARP_LESS,
           HALF_A_WARP, UNALIGNED };
    if (!module && cuModuleLoadData(&module, "EMULATED faults_wgmma.cu") != 0) abort();
    CHECK(has(product(160, NONE), "it survived: right"));
    const struct { int fault; const char *message; } cases[] = {
        {NONE, "it survived: right"},
        {NO_FENCE, "without wgmma_fence"},
        {NO_COMMIT, "sums are read before wgmma_wait"},
        {NO_WAIT, "nobody waited for"},
        {READ_BEFORE_WAIT, "wrong results"},
        {SETTLED_BEFORE_WAIT, "sums are read before wgmma_wait"},
        {A_REWRITTEN, "a register of A was written"},
        {SUMS_REWRITTEN, "sums were written before wgmma_wait"},
        {B_REUSED, "wrong results"},
        {NO_PROXY_FENCE, "without proxy_fence between"},
        {WRONG_SWIZZLE, "wrong results"},
        {WRONG_DESCRIPTOR, "no descriptor of columns"},
        {LANES_DIFFER, "lanes of one warp with different wgmma"},
        {WARPS_DIFFER, "warps of one group with different wgmma"},
        {ONE_WARP_LESS, "one warp of its group never came to"},
        {HALF_A_WARP, "lacks some of its lanes"},
        {UNALIGNED, "multiple of 1,024 bytes"},
    };
    for (const auto &[fault, message] : cases) CHECK(has(product(32, fault), message));
    CHECK(run_in(module, "registers", 1, 384, 0, 0) == 0);
    CHECK(has(dies([] { run_in(module, "registers", 1, 384, 0, 1); }), "more registers than a multiprocessor has"));
    CHECK(has(dies([] { run_in(module, "half_a_warp_multiplies", 1, 32, 0); }), "lacks some of its lanes"));
}

void check_wgmma_is_missing() {
    if (!module && cuModuleLoadData(&module, "EMULATED faults_wgmma.cu") != 0) abort();
    CHECK(has(product(32, 0), "illegal instruction"));
}
