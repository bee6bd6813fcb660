#include "wgmma.h"
#include <cstdio>
#include <list>
#include <vector>
// Behind the library, whose words it takes.
#include "cuda_on_cpu.h"

// As in tensor.cpp.
#pragma GCC optimize("O3")
#define CHECKED_BY_EYE __attribute__((no_sanitize("undefined")))

namespace emulator {

typedef float Eight __attribute__((vector_size(32)));

// What a lane says of a product it begins.
struct Issue {
    float *d;
    const uint32_t *a;
    uint64_t descriptor;
    int columns;
};
struct Lane {
    bool fenced;
    unsigned groups;  // committed
    bool operator==(const Lane &other) const { return fenced == other.fenced && groups == other.groups; }
};
// Sums that products under way add to: 16 rows of the warp.
struct Sums {
    float *of_lane[WARP];
    int columns;
    unsigned products;  // under way
    std::vector<Eight> rows;
};
struct Product {
    std::list<Sums>::iterator sums;
    uint64_t descriptor;
    unsigned group;
    const uint32_t *a[WARP];
    uint32_t held[WARP][4];  // what the registers of A were
};
struct Warp {
    std::list<Sums> sums;
    std::vector<Product> under_way;
    size_t issued = 0;
    int registers = 0;
};
static Lane lanes[1024];
static Warp warps[32];
// The descriptors of a warpgroup's products so far: its warps issue the same ones.
static std::vector<uint64_t> of_group[8];
static bool used;
// A signalling NaN: whatever is computed with it is another one.
constexpr uint32_t POISON = 0x7fa0beef;

static Warp &mine() { return warps[current->index / WARP]; }

// Of B: where its columns begin, and the bytes from eight of them to the next eight.
struct Columns {
    uint32_t start, eight;
    explicit Columns(uint64_t descriptor)
        : start(uint32_t(descriptor & 0x3fff) << 4), eight(uint32_t(descriptor >> 32 & 0x3fff) << 4) {
        // 128-byte swizzle, no base offset, and the leading offset that this mode ignores.
        const uint64_t fields = uint64_t(0x3fff) << 32 | uint64_t(0x3fff) << 16 | 0x3fff;
        if ((descriptor & ~fields) != uint64_t(1) << 62) fail("no descriptor of columns with 128-byte swizzle");
        if (eight % 1024 || start % 1024 >= 128 || start % 32)
            fail("columns of B that do not lie at a multiple of 1,024 bytes");
    }
    // Of 8 features of a column: 16 bytes.
    uint32_t piece(int column, int half) const {
        const uint32_t at = start + uint32_t(column / 8) * eight + uint32_t(column % 8) * 128 + uint32_t(half) * 16;
        return at ^ (at >> 7 & 7) << 4;
    }
};

// Whether all lanes come from the same place of the program.
static void need_agreement(unsigned warp) {
    for (unsigned i = 1; i < WARP; i++)
        if (!(lanes[warp * WARP + i] == lanes[warp * WARP]))
            fail("lanes of one warp with different fences or groups of wgmma");
}

static void begin(void *const (&offers)[WARP]) {
    const unsigned warp = current->index / WARP;
    Warp &me = warps[warp];
    const Issue &first = *(const Issue *)offers[0];
    need_agreement(warp);
    if (!lanes[warp * WARP].fenced) fail("wgmma without wgmma_fence since the last group");
    std::vector<uint64_t> &known = of_group[warp / 4];
    if (me.issued == known.size()) known.push_back(first.descriptor);
    if (known[me.issued++] != first.descriptor) fail("warps of one group with different wgmma");

    const Columns columns(first.descriptor);
    const uint32_t tile = columns.start / 1024 * 1024;
    const uint32_t bytes = uint32_t(first.columns / 8 - 1) * columns.eight + 1024;
    in_shared(tile, bytes, 1024);
    need_arrived(tile, bytes, "wgmma");
    for (int column = 0; column < first.columns; column++)
        for (int half = 0; half < 2; half++) need_fence(columns.piece(column, half), 16, "wgmma");

    auto sums = me.sums.begin();
    while (sums != me.sums.end() && sums->of_lane[0] != first.d) ++sums;
    const bool fresh = sums == me.sums.end();
    if (fresh) {
        sums = me.sums.insert(sums, {{}, first.columns, 0, std::vector<Eight>(size_t(2 * first.columns))});
    } else if (sums->columns != first.columns) {
        fail("sums of another shape are still under way here");
    }
    sums->products++;
    me.under_way.push_back({sums, first.descriptor, lanes[warp * WARP].groups, {}, {}});
    Product &product = me.under_way.back();
    for (unsigned lane = 0; lane < WARP; lane++) {
        const Issue &its = *(const Issue *)offers[lane];
        if (its.descriptor != first.descriptor || its.columns != first.columns)
            fail("lanes of one warp with different wgmma");
        product.a[lane] = its.a;
        memcpy(product.held[lane], its.a, sizeof product.held[lane]);
        if (!fresh) {
            if (sums->of_lane[lane] != its.d) fail("lanes of one warp with different sums");
            continue;
        }
        sums->of_lane[lane] = its.d;
        float *rows = (float *)sums->rows.data() + lane / 4 * unsigned(first.columns) + lane % 4 * 2;
        for (int i = 0; i < first.columns / 2; i++) {
            rows[i % 4 / 2 * 8 * first.columns + i / 4 * 8 + i % 2] = its.d[i];
            memcpy(&its.d[i], &POISON, 4);
        }
    }
}

CHECKED_BY_EYE static void compute(const Product &product) {
    const int n = product.sums->columns;
    float a[16][16];
    alignas(32) static float b[16][256];
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (memcmp(product.a[lane], product.held[lane], sizeof product.held[lane]) != 0) {
            fprintf(stderr, "cuda emulator: of lane %u\n", lane);
            fail("a register of A was written, or is gone, before wgmma_wait");
        }
        for (unsigned i = 0; i < 4; i++) {
            float *at = &a[lane / 4 + i % 2 * 8][lane % 4 * 2 + i / 2 * 8];
            at[0] = __uint_as_float(product.held[lane][i] << 16);
            at[1] = __uint_as_float(product.held[lane][i] & 0xffff0000u);
        }
    }
    const Columns columns(product.descriptor);
    for (int column = 0; column < n; column++)
        for (int half = 0; half < 2; half++) {
            uint16_t eight[8];
            memcpy(eight, in_shared(columns.piece(column, half), 16, 16), 16);
            for (int k = 0; k < 8; k++) b[8 * half + k][column] = __uint_as_float(uint32_t(eight[k]) << 16);
        }
    Eight *sums = product.sums->rows.data();
    for (int row = 0; row < 16; row++)
        for (int i = 0; i < n / 8; i++) {
            Eight sum = *sums;
            for (int k = 0; k < 16; k += 2)
                sum += a[row][k] * *(const Eight *)&b[k][8 * i] + a[row][k + 1] * *(const Eight *)&b[k + 1][8 * i];
            *sums++ = sum;
        }
}

static void give(const Sums &sums) {
    for (unsigned lane = 0; lane < WARP; lane++) {
        const float *rows = (const float *)sums.rows.data() + lane / 4 * unsigned(sums.columns) + lane % 4 * 2;
        for (int i = 0; i < sums.columns / 2; i++) {
            if (memcmp(&sums.of_lane[lane][i], &POISON, 4) != 0) fail("sums were written before wgmma_wait");
            sums.of_lane[lane][i] = rows[i % 4 / 2 * 8 * sums.columns + i / 4 * 8 + i % 2];
        }
    }
}

static void finish(void *const (&offers)[WARP]) {
    const unsigned warp = current->index / WARP, left = *(const unsigned *)offers[0];
    Warp &me = warps[warp];
    need_agreement(warp);
    for (void *offer : offers)
        if (*(const unsigned *)offer != left) fail("lanes of one warp wait for different groups of wgmma");
    size_t done = 0;
    for (; done < me.under_way.size(); done++) {
        const Product &product = me.under_way[done];
        if (product.group + left >= lanes[warp * WARP].groups) break;
        compute(product);
        if (--product.sums->products) continue;
        give(*product.sums);
        me.sums.erase(product.sums);
    }
    me.under_way.erase(me.under_way.begin(), me.under_way.begin() + long(done));
}

static void need_wgmma() {
    if (capability() != 90) fail("illegal instruction: wgmma needs capability 9.0, and that alone");
    used = true;
}

void issue_wgmma(float *d, const uint32_t *a, uint64_t descriptor, int columns) {
    need_wgmma();
    Issue issue = {d, a, descriptor, columns};
    together(begin, &issue);
}

void fence_wgmma() {
    need_wgmma();
    lanes[current->index].fenced = true;
}

void commit_wgmma() {
    need_wgmma();
    lanes[current->index].fenced = false;
    lanes[current->index].groups++;
}

void wait_for_wgmma(unsigned groups_left) {
    need_wgmma();
    together(finish, &groups_left);
}

void need_sums(const float *begin, const float *end) {
    for (const Sums &sums : mine().sums) {
        const float *at = sums.of_lane[lane()];
        if (at < end && begin < at + sums.columns / 2) fail("sums are read before wgmma_wait");
    }
}

void set_registers(int count, bool more) {
    need_wgmma();
    int &registers = mine().registers;
    if (registers && registers != count && (registers < count) != more) fail("that is not what more and fewer mean");
    registers = count;
}

void begin_block_of_wgmma() {
    if (!used) return;
    used = false;
    for (Warp &warp : warps) warp = Warp();
    for (Lane &lane : lanes) lane = Lane();
    for (auto &group : of_group) group.clear();
}

void end_block_of_wgmma() {
    if (!used) return;
    int registers = 0;
    bool all = true;
    for (unsigned i = 0; i * WARP < block.threads; i++) {
        if (!warps[i].under_way.empty()) fail("wgmma that nobody waited for when the block ended");
        if (warps[i].issued != of_group[i / 4].size()) fail("wgmma that one warp of its group never came to");
        registers += warps[i].registers * int(WARP);
        all = all && warps[i].registers;
    }
    // A block whose warps ask for more than there is waits for ever.
    if (all && registers > 65536) fail("more registers than a multiprocessor has");
}

}  // namespace emulator
