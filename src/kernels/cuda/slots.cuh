// Activations of (token, expert) pairs, sorted by expert, as the experts' products read them.
//
// A pair has a slot; pairs of one expert have consecutive ones, from a multiple of 8 on. `slots`
// are [part][cols / 64 rounded up to slabs][slots][64] bf16: of each 64 columns a chunk of pairs is
// contiguous bytes, one bulk copy. The eight 16-byte pieces of a slot's 64 columns are at piece ^
// slot % 8, which wgmma calls K-major with a swizzle of 128 bytes, and which lets eight slots of a
// piece be read from different banks. Columns behind the last are zero. Slots without a pair are
// never written, and whoever reads them must not let them into a pair's sums.
#pragma once
#include "products.cuh"

// Columns of a slab of packed weights, see moe.cuh, and of 64 columns that slots come in.
constexpr int SLAB_COLUMNS = 192;
constexpr int SLAB_64 = SLAB_COLUMNS / 64;

// order[slot] of a slot without a pair.
constexpr uint32_t NO_PAIR = 0xffffffffu;

// Up to a class's limit of pairs of one expert, in slots `slot` .. `slot + count`.
struct Chunk {
    uint32_t expert, slot, count, unused;
};

// Where columns 8 · piece .. 8 · piece + 8 of a slot are, in units of 16 bytes; `slabs` of the
// columns.
__device__ __forceinline__ size_t slot_piece(int part, int slabs, uint32_t slots, uint32_t slot,
                                             int piece) {
    return ((size_t(part) * slabs * SLAB_64 + piece / 8) * slots + slot) * 8 + ((piece ^ slot) & 7);
}
