// Packed experts for few pairs each: the products of every decode step from three tokens on.
//
// Bound by memory: 64 tokens choose nearly all of 128 experts, 1.06 GB of gate and up. One block on
// each multiprocessor, a warp for every slab of 192 columns (15 of 2,880) and one that copies and
// finishes. A stage of the ring is a tile, 16 whole rows: contiguous, one bulk copy; 7 stages are
// 171 KB in flight, where 4.3 TB/s at a latency of 1 µs need 33 KB on each of 132 multiprocessors.
// A warp has its slab of the chunk's up to eight pairs in registers, 24 words of each part, for as
// long as the chunk lasts, and 24 mma a tile to make with two parts. It leaves its 16 × 8 sums in
// the stage and goes on: the warps never wait for each other. The last warp adds them in order,
// refills the stage, and finishes.
//
// The tiles of all chunks are one line, cut in equal pieces, whatever the chunks' number. Where
// there are no bulk copies, the last warp's lanes ask for 16 bytes each.
//
// Barriers: full[s], the tile of stage s has arrived; done[s], every warp has left its sums. The
// sums of a stage are read before its next tile is asked for, and written after that has arrived.
#include "async.cuh"
#include "slab.cuh"

namespace {

constexpr int FEW_PAIRS = 8;
constexpr int MOST_THREADS = 32 * 16;
constexpr int SUM_BYTES = 16 * FEW_PAIRS * 4;  // of a slab

// What both halves read.
struct Products {
    const uint8_t *packed;
    const uint16_t *bias;  // [E, rows]
    const uint4 *x;        // slots
    const uint32_t *order;
    const Chunk *chunks;
    const uint32_t *count;  // of chunks
    int rows, slabs;
    uint32_t slots;
    int stages;
};

// A place in the line of tiles.
struct Place {
    uint32_t chunk, tile, tiles;

    __device__ void next() {
        if (++tile == tiles) tile = 0, chunk++;
    }
};

// A stage of the ring, at addresses of shared memory, and the parity of its phase.
struct Ring {
    uint32_t base, barriers, stage_bytes;
    int stages, stage;
    uint32_t parity;

    __device__ uint32_t tile() const { return base + stage * stage_bytes; }
    __device__ uint32_t full() const { return barriers + 16 * stage; }
    __device__ uint32_t done() const { return full() + 8; }
    __device__ void next() {
        if (++stage == stages) stage = 0, parity ^= 1;
    }
};

// A slab of a chunk's activations, see slab_product.
template <int PARTS> struct Columns {
    uint4 of[SLAB_64][2][PARTS];

    __device__ uint4 operator()(int j, int w, int part) const { return of[j][w][part]; }
};

template <int PARTS>
__device__ __forceinline__ void load_columns(Columns<PARTS> &x, const Products &p, Chunk chunk,
                                             int slab) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const bool here = uint32_t(g) < chunk.count;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
#pragma unroll
        for (int j = 0; j < SLAB_64; j++) {
            const int piece = (slab * SLAB_64 + j) * 8;
            const uint32_t *row = reinterpret_cast<const uint32_t *>(
                p.x + slot_piece(part, p.slabs, p.slots, chunk.slot + g, piece) / 8 * 8);
#pragma unroll
            for (int w = 0; w < 2; w++) {
                uint32_t v[4];
                // Slots begin at multiples of 8: this one's pieces are at piece ^ g.
#pragma unroll
                for (int r = 0; r < 4; r++)
                    v[r] = here ? __ldcg(row + ((4 * w + r) ^ g) * 4 + q) : 0u;
                x.of[j][w][part] = make_uint4(v[0], v[1], v[2], v[3]);
            }
        }
    }
}

// Every warp but the last, for the tiles from `place` on.
template <int PARTS>
__device__ __forceinline__ void multiply(const Products &p, Place place, uint32_t tiles,
                                         Ring ring) {
    const int slab = threadIdx.x / 32, lane = threadIdx.x % 32;
    Columns<PARTS> x;
    uint32_t have = ~0u;
    for (; tiles > 0; tiles--, place.next(), ring.next()) {
        if (have != place.chunk) {
            have = place.chunk;
            load_columns(x, p, p.chunks[have], slab);
        }
        const uint32_t from = ring.tile() + slab * SLAB_BYTES;
        barrier_wait(ring.full(), ring.parity);
        SlabWeights a;
#pragma unroll
        for (int j = 0; j < SLAB_64; j++) {
            a.words[j] = load_shared128(from + (j * 32 + lane) * 16);
            a.scales[j] = load_shared32(from + SLAB_WEIGHTS + (j * 8 + lane / 4) * 4);
        }
        const float4 sum = slab_product<PARTS>(a, x);
        const uint32_t to = ring.tile() + p.slabs * SLAB_BYTES + slab * SUM_BYTES + lane * 16;
        store_shared128(to, make_uint4(__float_as_uint(sum.x), __float_as_uint(sum.y),
                                       __float_as_uint(sum.z), __float_as_uint(sum.w)));
        __syncwarp();
        if (lane == 0) barrier_arrive(ring.done());
    }
}

// The last warp asks for the tiles of its line.
struct Copies {
    Place place;
    uint32_t left;
    uint64_t policy;

    __device__ __forceinline__ void next(const Products &p, const Ring &ring) {
        if (left == 0) return;
        const int lane = threadIdx.x % 32, bytes = p.slabs * SLAB_BYTES;
        const size_t tile = size_t(p.chunks[place.chunk].expert) * place.tiles + place.tile;
        const uint8_t *from = p.packed + tile * bytes;
        if (has_bulk_copies()) {
            if (lane == 0) {
                barrier_expect(ring.full(), bytes);
                bulk_copy(ring.tile(), from, bytes, ring.full(), policy);
            }
        } else {
            for (int i = lane * 16; i < bytes; i += 32 * 16)
                async_copy16(ring.tile() + i, from + i);
            async_arrive(ring.full());
        }
        left--;
        place.next();
    }
};

// The last warp: fills the ring, adds the slabs of each tile, and gives `finish` the sums (as
// slab_product gives them) with the chunk and the number of its tile. `begin` is called before,
// with nothing to wait for.
template <class Begin, class Finish>
__device__ __forceinline__ void add_slabs(const Products &p, Place place, uint32_t tiles, Ring ring,
                                          Begin begin, Finish finish) {
    const int lane = threadIdx.x % 32;
    Copies copies = {place, tiles, has_bulk_copies() ? evict_first() : 0};
    for (int s = 0; s < p.stages; s++, ring.next()) copies.next(p, ring);
    ring.parity = 0;
    Chunk chunk = {};
    uint32_t have = ~0u;
    for (; tiles > 0; tiles--, place.next(), ring.next()) {
        if (have != place.chunk) {
            have = place.chunk;
            chunk = p.chunks[have];
        }
        const auto ready = begin(chunk, place.tile);
        barrier_wait(ring.done(), ring.parity);
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const uint32_t from = ring.tile() + p.slabs * SLAB_BYTES + lane * 16;
#pragma unroll 5
        for (int slab = 0; slab < p.slabs; slab++) {
            const uint4 v = load_shared128(from + slab * SUM_BYTES);
            add(sum, make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z),
                                 __uint_as_float(v.w)));
        }
        __syncwarp();  // all lanes have read what the next tile's sums overwrite
        copies.next(p, ring);
        finish(chunk, place.tile, sum, ready);
    }
}

// This block's piece of the line.
template <int PARTS, class Begin, class Finish>
__device__ __forceinline__ void products(const Products &p, Begin begin, Finish finish) {
    DYNAMIC_SHARED(shared);
    const uint32_t stage_bytes = p.slabs * (SLAB_BYTES + SUM_BYTES), base = shared_address(shared);
    const Ring ring = {base, base + p.stages * stage_bytes, stage_bytes, p.stages, 0, 0};
    const uint32_t per_chunk = p.rows / TILE_ROWS_PACKED;
    const uint64_t all = uint64_t(*p.count) * per_chunk;
    const uint32_t first = uint32_t(all * blockIdx.x / gridDim.x);
    const uint32_t tiles = uint32_t(all * (blockIdx.x + 1) / gridDim.x) - first;
    if (threadIdx.x == 0) {
        for (int s = 0; s < p.stages; s++) {
            barrier_init(ring.barriers + 16 * s, has_bulk_copies() ? 1 : 32);
            barrier_init(ring.barriers + 16 * s + 8, p.slabs);
        }
        barrier_init_fence();
    }
    __syncthreads();
    const Place place = {first / per_chunk, first % per_chunk, per_chunk};
    if (int(threadIdx.x) / 32 == p.slabs) {
        add_slabs(p, place, tiles, ring, begin, finish);
    } else {
        multiply<PARTS>(p, place, tiles, ring);
    }
}

template <int PARTS>
__device__ __forceinline__ void gate_up_few(uint4 *act, int act_slabs, const Products &p,
                                            float alpha, float limit) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const uint32_t tiles = p.rows / TILE_ROWS_PACKED;
    const auto begin = [=](Chunk chunk, uint32_t tile) {
        const uint16_t *bias =
            p.bias + size_t(chunk.expert) * p.rows + tile * TILE_ROWS_PACKED + gate_row(g);
        return make_float2(bf16_to_f32(bias[0]), bf16_to_f32(bias[1]));
    };
    products<PARTS>(p, begin, [=](Chunk chunk, uint32_t tile, float4 sum, float2 bias) {
        const float2 both = gate_up(sum, bias, alpha, limit);
        // The outputs of a tile are one piece of eight columns.
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t n = 2 * q + i;
            if (n >= chunk.count) continue;
            const Bf16Parts v = split_bf16(i == 0 ? both.x : both.y);
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                uint4 *piece = act + slot_piece(part, act_slabs, p.slots, chunk.slot + n, tile);
                reinterpret_cast<uint16_t *>(piece)[gate_row(g) / 2] = part == 0 ? v.hi : v.lo;
            }
        }
        if (tile + 1 < tiles) return;
        // Behind the last column slots have zeros.
        const uint32_t pieces = act_slabs * (SLAB_COLUMNS / 8) - tiles;
        for (uint32_t i = lane; i < chunk.count * pieces; i += 32)
            for (int part = 0; part < PARTS; part++)
                act[slot_piece(part, act_slabs, p.slots, chunk.slot + i / pieces,
                               tiles + i % pieces)] = make_uint4(0, 0, 0, 0);
    });
}

template <int PARTS> __device__ __forceinline__ void down_few(float *y, const Products &p) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const auto begin = [=](Chunk chunk, uint32_t tile) {
        const uint16_t *bias =
            p.bias + size_t(chunk.expert) * p.rows + tile * TILE_ROWS_PACKED + g;
        const uint32_t *pair = p.order + chunk.slot + 2 * q;
        return make_uint4(bias[0], bias[8], pair[0], pair[1]);
    };
    products<PARTS>(p, begin, [=](Chunk, uint32_t tile, float4 sum, uint4 ready) {
        const float upper = bf16_to_f32(ready.x), lower = bf16_to_f32(ready.y);
        float *to = y + tile * TILE_ROWS_PACKED + g;
        if (ready.z != NO_PAIR) {
            float *row = to + size_t(ready.z) * p.rows;
            row[0] = sum.x + upper, row[8] = sum.z + lower;
        }
        if (ready.w != NO_PAIR) {
            float *row = to + size_t(ready.w) * p.rows;
            row[0] = sum.y + upper, row[8] = sum.w + lower;
        }
    });
}

}  // namespace

// What gate and up give, as slots of down's input: `act_slabs` of them. Block: a warp for each slab
// and one more; grid: any; shared memory: `stages` of slabs · (SLAB_BYTES + SUM_BYTES) bytes and
// 16.
#define GATE_UP(name, PARTS)                                                                       \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)                                  \
        name(uint4 *__restrict__ act, const uint8_t *__restrict__ packed,                          \
             const uint16_t *__restrict__ bias, const uint4 *__restrict__ x,                       \
             const uint32_t *__restrict__ order, const Chunk *__restrict__ chunks,                 \
             const uint32_t *__restrict__ count, int rows, int slabs, uint32_t slots, int stages,  \
             int act_slabs, float alpha, float limit) {                                            \
        gate_up_few<PARTS>(                                                                        \
            act, act_slabs,                                                                        \
            {packed, bias, x, order, chunks, count, rows, slabs, slots, stages}, alpha, limit);    \
    }

// y[pair, row] = bias + W·x.
#define DOWN(name, PARTS)                                                                          \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)                                  \
        name(float *__restrict__ y, const uint8_t *__restrict__ packed,                            \
             const uint16_t *__restrict__ bias, const uint4 *__restrict__ x,                       \
             const uint32_t *__restrict__ order, const Chunk *__restrict__ chunks,                 \
             const uint32_t *__restrict__ count, int rows, int slabs, uint32_t slots,              \
             int stages) {                                                                         \
        down_few<PARTS>(                                                                           \
            y, {packed, bias, x, order, chunks, count, rows, slabs, slots, stages});               \
    }

GATE_UP(moe_gate_up_few_exact, 2)
GATE_UP(moe_gate_up_few_bf16, 1)
DOWN(moe_down_few_exact, 2)
DOWN(moe_down_few_bf16, 1)
