// Packed experts for many pairs each, of prompts: wgmma, whose A are 64 rows of weights, decoded in
// registers, and whose B are a chunk's pairs in shared memory. Capability 9.0 alone.
//
// A piece is TILES tiles of 16 rows times a chunk. Two rings go through its columns: slabs of
// weights, copied by a warp of the one warpgroup that does not multiply, and 64 columns of the
// pairs, copied by another. A multiplying warp reads 16 + 4 bytes a lane for 64 columns of 16 rows,
// and for each word of 32 columns waits until all but its last group of products are done, decodes,
// and begins the next group: one is always under way. Both parts of activations use the same
// registers of A.
//
// Chunks are in classes by their number of pairs, a kernel for each: a product of 160 columns takes
// as long for 33 pairs. Counted for 2,880 columns, a multiprocessor doing 2,048 multiplications a
// clock:
//
//            class  rows  KB shared    clocks   KB fetched   bytes a clock
//   exact       32   384        217    34,560          956              28
//               64   384        211    69,120        1,325              19
//               96   192        182    51,840        1,400              27
//              128   256        205    92,160        1,866              20
//              160   192        198    86,400        2,137              25
//   bf16        32   384        223    17,280          772              45
//               64   384        217    34,560          956              28
//               96   192        173    25,920          847              33
//              128   256        205    46,080        1,129              25
//              160   192        178    43,200        1,215              28
//
// The loop is 470 instructions a warp for a slab of 64 rows and 730 for 128: 24 % of the clocks of
// the two largest exact classes, 43 % of bf16's; more of the smaller ones, which wait for memory.
// The bytes come from the second cache but for a chunk's first piece and its expert's weights.
//
// Measured on an H200 for gate_up + down, 128 experts, 4 a token, two parts: 1,024 tokens 694 + 398
// us, 60 % of the rate above; 4,096 tokens 1,601 + 888 us, 81 %. One part in chunks of 160 alone
// 948 + 492, 72 %. So of one part, not measured: 890 + 480 us for 4,096 tokens; for 1,024, where
// reading the experts alone takes 250 + 136, 380 + 220.
//
// A pair's sums are added by column, hi and lo of 16 columns after each other (up to 32 pairs: all
// hi, all lo, then the two). So its bits depend on its own row, its expert, and its chunk's class.
#include "async.cuh"
#include "slab.cuh"
#include "wgmma.cuh"

#if HAS_WGMMA

namespace {

// One class of chunks, of up to N pairs. GROUPS warpgroups multiply, BLOCKS times 64 rows each; of
// one more, warp 0 fetches weights and warp 1 activations.
template <int N_, int PARTS_, int GROUPS_, int BLOCKS_, int COLUMN_STAGES_, int WEIGHT_STAGES_>
struct Class {
    static constexpr int N = N_, PARTS = PARTS_, GROUPS = GROUPS_, BLOCKS = BLOCKS_;
    static constexpr int COLUMN_STAGES = COLUMN_STAGES_, WEIGHT_STAGES = WEIGHT_STAGES_;
    static constexpr int TILES = 4 * GROUPS * BLOCKS;  // of 16 rows
    // Of few pairs both parts are columns of one product, whose sums are added at the end.
    static constexpr bool BESIDE = PARTS == 2 && N <= 32;
    static constexpr int WIDTH = BESIDE ? 2 * N : N, TIMES = BESIDE ? 1 : PARTS;
    static constexpr int PART_BYTES = N * 128, COLUMN_BYTES = PARTS * PART_BYTES;
    static constexpr int WEIGHT_BYTES = TILES * SLAB_BYTES;
    static constexpr int BARRIERS = COLUMN_STAGES * COLUMN_BYTES + WEIGHT_STAGES * WEIGHT_BYTES;
    static constexpr int SHARED = BARRIERS + 16 * (COLUMN_STAGES + WEIGHT_STAGES);
    static_assert(SHARED <= 227 * 1024, "more than a block has");
};

// Stages in shared memory, the barriers of the present one and their parity. A stage is full when
// its copies are there, and free when every multiplying warp has read it.
template <int STAGES, int BYTES> struct Ring {
    uint32_t base, barriers;
    int stage;
    uint32_t parity;

    __device__ __forceinline__ uint32_t at() const { return base + stage * BYTES; }
    __device__ __forceinline__ uint32_t full() const { return barriers + 16 * stage; }
    __device__ __forceinline__ uint32_t free() const { return full() + 8; }
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    __device__ __forceinline__ void init(int readers) const {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(barriers + 16 * s, 1);
            barrier_init(barriers + 16 * s + 8, readers);
        }
    }
};
template <class C> using Columns = Ring<C::COLUMN_STAGES, C::COLUMN_BYTES>;
template <class C> using Weights = Ring<C::WEIGHT_STAGES, C::WEIGHT_BYTES>;

// What both halves read.
struct Products {
    const uint8_t *packed;
    const uint16_t *bias;   // [E, rows]
    const uint4 *x;         // slots
    const Chunk *chunks;    // of the class
    const uint32_t *count;  // of chunks
    int rows, slabs;
    uint32_t slots;

    __device__ __forceinline__ int tiles() const { return rows / TILE_ROWS_PACKED; }

    // work(chunk, first) for this block's pieces: up to C::TILES tiles of 16 rows from `first` on,
    // times a chunk. Pieces of a chunk are beside each other, since they read the same activations.
    template <class C, class Work> __device__ __forceinline__ void for_pieces(Work work) const {
        const uint32_t of_chunk = (tiles() + C::TILES - 1) / C::TILES, all = *count * of_chunk;
        for (uint32_t i = blockIdx.x; i < all; i += gridDim.x)
            work(chunks[i / of_chunk], int(i % of_chunk) * C::TILES);
    }
};

// One warp: a slab of each tile is a stage.
template <class C>
__device__ __forceinline__ void fetch_weights(const Products &p, Weights<C> ring) {
    const int lane = threadIdx.x % 32;
    const uint64_t once = evict_first();
    p.for_pieces<C>([&](Chunk chunk, int first) {
        const int tiles = min(C::TILES, p.tiles() - first);
        const size_t tile = size_t(chunk.expert) * p.tiles() + first + lane;
        const uint8_t *from = p.packed + tile * p.slabs * SLAB_BYTES;
        for (int slab = 0; slab < p.slabs; slab++, from += SLAB_BYTES, ring.next()) {
            barrier_wait(ring.free(), ring.parity ^ 1);
            if (lane == 0) barrier_expect(ring.full(), tiles * SLAB_BYTES);
            __syncwarp();
            if (lane >= tiles) continue;
            const uint32_t to = ring.at() + lane * SLAB_BYTES;
            // An expert with more pairs has several chunks, which read the same weights.
            if (C::N <= 64) {
                bulk_copy(to, from, SLAB_BYTES, ring.full(), once);
            } else {
                bulk_copy(to, from, SLAB_BYTES, ring.full());
            }
        }
    });
}

// One thread: 64 columns of the chunk's pairs are a stage, part after part.
template <class C>
__device__ __forceinline__ void fetch_columns(const Products &p, Columns<C> ring) {
    p.for_pieces<C>([&](Chunk chunk, int) {
        const uint32_t bytes = (chunk.count + 7) / 8 * 1024;
        const int steps = p.slabs * SLAB_64;
        for (int i = 0; i < steps; i++, ring.next()) {
            barrier_wait(ring.free(), ring.parity ^ 1);
            barrier_expect(ring.full(), C::PARTS * bytes);
#pragma unroll
            for (int part = 0; part < C::PARTS; part++)
                bulk_copy(ring.at() + part * C::PART_BYTES,
                          p.x + ((size_t(part) * steps + i) * p.slots + chunk.slot) * 8, bytes,
                          ring.full());
        }
    });
}

// A fragment of A, see wgmma_bf16: features 16h .. 16h + 16 of a word of row g and one of row g +
// 8, with their scales.
__device__ __forceinline__ void decode(uint32_t (&a)[2][4], uint32_t upper, uint32_t lower,
                                       uint32_t upper_code, uint32_t lower_code) {
    uint32_t u[4], l[4];
    unpack(u, upper);
    unpack(l, lower);
    const uint32_t upper_factor = scale_factor(upper_code), lower_factor = scale_factor(lower_code);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        a[h][0] = bf16x2_multiply(u[2 * h], upper_factor);
        a[h][1] = bf16x2_multiply(l[2 * h], lower_factor);
        a[h][2] = bf16x2_multiply(u[2 * h + 1], upper_factor);
        a[h][3] = bf16x2_multiply(l[2 * h + 1], lower_factor);
    }
}

// Adds all slabs of a piece. Block b of this warp are tile (b · GROUPS + group) · 4 + warp of the
// piece. One group of products is always under way while the weights of the next are decoded.
template <class C>
__device__ __forceinline__ void multiply(float (&sum)[C::BLOCKS][C::WIDTH / 2], Columns<C> &columns,
                                         Weights<C> &weights, int slabs) {
    const int lane = threadIdx.x % 32, tile = threadIdx.x / 32;
    uint32_t a[C::BLOCKS][2][2][4];
    uint32_t read = 0;  // the barrier that hears of the 64 columns before, when they have been read
#pragma unroll 1
    for (int slab = 0; slab < slabs; slab++) {
        barrier_wait(weights.full(), weights.parity);
        const uint32_t from = weights.at() + tile * SLAB_BYTES;
#pragma unroll
        for (int j = 0; j < SLAB_64; j++) {
            uint4 words[C::BLOCKS];
            uint32_t codes[C::BLOCKS];
#pragma unroll
            for (int b = 0; b < C::BLOCKS; b++) {
                const uint32_t at = from + b * (4 * C::GROUPS * SLAB_BYTES);
                words[b] = load_shared128(at + (j * 32 + lane) * 16);
                codes[b] = load_shared32(at + SLAB_WEIGHTS + (j * 8 + lane / 4) * 4);
            }
            if (j == SLAB_64 - 1) {
                __syncwarp();
                if (lane == 0) barrier_arrive(weights.free());
                weights.next();
            }
            // Of lane 0, so that the compiler knows that it is the same in all.
            const uint32_t b64 = __shfl_sync(ALL_LANES, wgmma_columns(columns.at()), 0);
#pragma unroll
            for (int w = 0; w < 2; w++) {
                // The products that read these registers of A are done.
                wgmma_wait<1>();
                if (w == 1) {
                    if (read != 0 && lane == 0) barrier_arrive(read);
                    read = columns.free();
                }
#pragma unroll
                for (int b = 0; b < C::BLOCKS; b++)
                    decode(a[b][w], w == 0 ? words[b].x : words[b].y,
                           w == 0 ? words[b].z : words[b].w, codes[b] >> 8 * w & 0xff,
                           codes[b] >> (16 + 8 * w) & 0xff);
                if (w == 0) barrier_wait(columns.full(), columns.parity);
                wgmma_fence();
#pragma unroll
                for (int h = 0; h < 2; h++)
#pragma unroll
                    for (int part = 0; part < C::TIMES; part++)
#pragma unroll
                        for (int b = 0; b < C::BLOCKS; b++)
                            wgmma_bf16<C::WIDTH>(sum[b], a[b][w][h],
                                                 wgmma_descriptor(b64 + part * C::PART_BYTES / 16 +
                                                                  2 * (2 * w + h)));
                wgmma_commit();
            }
            columns.next();
        }
    }
    wgmma_wait<0>();
#pragma unroll
    for (int b = 0; b < C::BLOCKS; b++) wgmma_settle(sum[b]);
    if (lane == 0) barrier_arrive(read);
}

// This block's pieces: finish(chunk, tile, n, sum) for each eight pairs from 8n on, with rows g (x,
// y) and g + 8 (z, w) of pairs 2 · (lane % 4) and the next; begin(chunk, tile) before.
template <class C, class Begin, class Finish>
__device__ __forceinline__ void products(const Products &p, Begin begin, Finish finish) {
    DYNAMIC_SHARED(shared);
    const uint32_t base = shared_address(shared), barriers = base + C::BARRIERS;
    Columns<C> columns = {base, barriers, 0, 0};
    Weights<C> weights = {base + C::COLUMN_STAGES * C::COLUMN_BYTES,
                          barriers + 16 * C::COLUMN_STAGES, 0, 0};
    const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        columns.init(4 * C::GROUPS);
        weights.init(4 * C::GROUPS);
        barrier_init_fence();
    }
    __syncthreads();
    if (group == C::GROUPS) {
        fewer_registers<C::GROUPS == 3 ? 32 : 24>();
        if (warp == 0) fetch_weights<C>(p, weights);
        if (warp == 1 && lane == 0) fetch_columns<C>(p, columns);
        return;
    }
    more_registers<C::GROUPS == 3 ? 160 : 240>();
    p.for_pieces<C>([&](Chunk chunk, int first) {
        float sum[C::BLOCKS][C::WIDTH / 2] = {};
        multiply<C>(sum, columns, weights, p.slabs);
#pragma unroll
        for (int b = 0; b < C::BLOCKS; b++) {
            const int tile = first + (b * C::GROUPS + group) * 4 + warp;
            if (tile >= p.tiles()) continue;
            const auto ready = begin(chunk, tile);
#pragma unroll
            for (int n = 0; n < C::N / 8; n++) {
                if (8 * n >= int(chunk.count)) break;
                float v[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    v[i] = sum[b][4 * n + i];
                    if constexpr (C::BESIDE) v[i] += sum[b][C::N / 2 + 4 * n + i];
                }
                finish(chunk, tile, n, make_float4(v[0], v[1], v[2], v[3]), ready);
            }
        }
    });
}

// Where a lane writes of eight pairs' outputs of a tile: in a piece of 8 outputs of slot 8n +
// `slot` of part `part`, bytes from `byte` on. Lanes of the same q and all g have output
// gate_row(g) / 2 each; store_outputs has them change values until a lane has neighbours of one
// pair.
template <int PARTS> struct OutputPlace {
    int part, slot, byte;

    __device__ __forceinline__ OutputPlace() {
        const int lane = threadIdx.x % 32, q = lane % 4;
        const int g0 = lane / 4 % 2, g1 = lane / 8 % 2, g2 = lane / 16;
        part = PARTS == 2 ? g1 : 0;
        slot = 2 * q + (PARTS == 2 ? g2 : g1);
        byte = PARTS == 2 ? 8 * g0 : 8 * g0 + 4 * g2;
    }
};

template <int PARTS>
__device__ __forceinline__ void store_outputs(uint8_t *to, bool here, float2 v) {
    const bool g1 = threadIdx.x & 8, g2 = threadIdx.x & 16;
    uint32_t hi, lo;
    split_bf16x2(hi, lo, v.x, v.y);
    const uint32_t kept = PARTS == 2 && g1 ? lo : hi, given = PARTS == 2 && !g1 ? lo : hi;
    const uint32_t other = __shfl_xor_sync(ALL_LANES, given, 8);
    const uint32_t even = g1 ? other : kept, odd = g1 ? kept : other;
    const uint32_t first = __byte_perm(even, odd, 0x5410), second = __byte_perm(even, odd, 0x7632);
    if constexpr (PARTS == 1) {
        if (here) *reinterpret_cast<uint32_t *>(to) = g1 ? second : first;
    } else {
        const uint32_t mine = g2 ? second : first;
        const uint32_t next = __shfl_xor_sync(ALL_LANES, g2 ? first : second, 16);
        if (here)
            *reinterpret_cast<uint2 *>(to) = g2 ? make_uint2(next, mine) : make_uint2(mine, next);
    }
}

template <class C>
__device__ __forceinline__ void gate_up_many(uint4 *act, int act_slabs, const Products &p,
                                             float alpha, float limit) {
    const int lane = threadIdx.x % 32, g = lane / 4;
    const OutputPlace<C::PARTS> place;
    struct Ready {
        float2 bias;
        uint8_t *to;
    };
    const auto begin = [&](Chunk chunk, int tile) {
        const uint16_t *bias =
            p.bias + size_t(chunk.expert) * p.rows + tile * TILE_ROWS_PACKED + gate_row(g);
        uint4 *to = act + slot_piece(place.part, act_slabs, p.slots, chunk.slot + place.slot, tile);
        if (tile + 1 == p.tiles()) {
            // Behind the last column slots have zeros.
            const int behind = act_slabs * (SLAB_COLUMNS / 8) - p.tiles();
            for (int i = lane; i < int(chunk.count) * behind; i += 32)
                for (int part = 0; part < C::PARTS; part++)
                    act[slot_piece(part, act_slabs, p.slots, chunk.slot + i / behind,
                                   p.tiles() + i % behind)] = make_uint4(0, 0, 0, 0);
        }
        return Ready{make_float2(bf16_to_f32(bias[0]), bf16_to_f32(bias[1])),
                     reinterpret_cast<uint8_t *>(to) + place.byte};
    };
    products<C>(p, begin, [&](Chunk chunk, int, int n, float4 sum, Ready ready) {
        const float2 v = gate_up(sum, ready.bias, alpha, limit);
        // Eight slots of 64 columns further on.
        store_outputs<C::PARTS>(ready.to + n * 1024, 8 * n + place.slot < int(chunk.count), v);
    });
}

template <class C>
__device__ __forceinline__ void down_many(float *y, const uint32_t *order, const Products &p) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const auto begin = [&](Chunk chunk, int tile) {
        const uint16_t *bias =
            p.bias + size_t(chunk.expert) * p.rows + tile * TILE_ROWS_PACKED + g;
        return make_float2(bf16_to_f32(bias[0]), bf16_to_f32(bias[8]));
    };
    products<C>(p, begin, [&](Chunk chunk, int tile, int n, float4 sum, float2 bias) {
        const uint2 pair =
            __ldg(reinterpret_cast<const uint2 *>(order + chunk.slot + 8 * n + 2 * q));
        float *to = y + tile * TILE_ROWS_PACKED + g;
        if (pair.x != NO_PAIR) {
            float *row = to + size_t(pair.x) * p.rows;
            row[0] = sum.x + bias.x, row[8] = sum.z + bias.y;
        }
        if (pair.y != NO_PAIR) {
            float *row = to + size_t(pair.y) * p.rows;
            row[0] = sum.y + bias.x, row[8] = sum.w + bias.y;
        }
    });
}

}  // namespace

#define WITH_WGMMA(...) __VA_ARGS__
#else
#define WITH_WGMMA(...) __trap()
#endif

// Of a class of chunks: what gate and up give, as `act_slabs` slabs of slots of down's input; and
// y[pair, row] = bias + W·x. Block: 128 · (GROUPS + 1) threads; grid: any; shared memory:
// Class::SHARED. One class a kernel: with sums of several widths in one, the compiler has the
// products wait for each other.
#define MANY(N, mode, PARTS, GROUPS, BLOCKS, COLUMN_STAGES, WEIGHT_STAGES)                         \
    extern "C" __global__ void __launch_bounds__(128 * (GROUPS + 1), 1)                            \
        moe_gate_up_many_##mode##_##N(                                                             \
            uint4 *__restrict__ act, const uint8_t *__restrict__ packed,                           \
            const uint16_t *__restrict__ bias, const uint4 *__restrict__ x,                        \
            const Chunk *__restrict__ chunks, const uint32_t *__restrict__ count, int rows,        \
            int slabs, uint32_t slots, int act_slabs, float alpha, float limit) {                  \
        WITH_WGMMA(gate_up_many<Class<N, PARTS, GROUPS, BLOCKS, COLUMN_STAGES, WEIGHT_STAGES>>(    \
            act, act_slabs, {packed, bias, x, chunks, count, rows, slabs, slots}, alpha, limit));  \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(128 * (GROUPS + 1), 1)                            \
        moe_down_many_##mode##_##N(                                                                \
            float *__restrict__ y, const uint8_t *__restrict__ packed,                             \
            const uint16_t *__restrict__ bias, const uint4 *__restrict__ x,                        \
            const uint32_t *__restrict__ order, const Chunk *__restrict__ chunks,                  \
            const uint32_t *__restrict__ count, int rows, int slabs, uint32_t slots) {             \
        WITH_WGMMA(down_many<Class<N, PARTS, GROUPS, BLOCKS, COLUMN_STAGES, WEIGHT_STAGES>>(       \
            y, order, {packed, bias, x, chunks, count, rows, slabs, slots}));                      \
    }

MANY(32, exact, 2, 3, 2, 8, 4)
MANY(64, exact, 2, 3, 2, 6, 3)
MANY(96, exact, 2, 3, 1, 6, 2)
MANY(128, exact, 2, 2, 2, 4, 3)
MANY(160, exact, 2, 3, 1, 4, 2)
MANY(32, bf16, 1, 3, 2, 8, 5)
MANY(64, bf16, 1, 3, 2, 8, 4)
MANY(96, bf16, 1, 3, 1, 8, 4)
MANY(128, bf16, 1, 2, 2, 8, 3)
MANY(160, bf16, 1, 3, 1, 6, 3)
