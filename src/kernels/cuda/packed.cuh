// MXFP4 in the order in which a warp's lanes multiply it, made by moe_pack.cu from what is stored.
//
// Sixteen rows are a tile: contiguous bytes, a slab for every 192 columns. A slab is 1,536 bytes of
// FP4 and 96 of scales. Its word of 16 bytes (j · 32 + lane) is what the lane with g = lane / 4 and
// q = lane % 4 holds of 64 columns j: two words of row g, one for each block of 32 columns, and two
// of row g + 8. The scales of those four blocks are bytes 4 · (j · 8 + g) .. + 4 behind the FP4.
// Columns behind the last have FP4 0 and a scale of 1.
//
// A word has eight FP4 of one block: features 8r + 2q + u, r = 0..3 being the register of an
// operand of mma.sync (or of a fragment of wgmma) that they belong to and u its half. The codes of
// r lie at
//   r 0: sign 15, others 8..6    r 1: 12, 5..3    r 2: 14, 11..9    r 3: 13, 2..0    of their half,
// from where one or two shifts and masks bring them to bits 15 and 8..6: there exponent and
// mantissa of a bf16 begin, so these are FP4 · 2^-126, subnormal where FP4 is. One multiplication
// by 2^(code − 1) makes FP4 · 2^(code − 127) of both halves, exactly: code is a scale within
// 8..=128.
#pragma once
#include "slots.cuh"

constexpr int TILE_ROWS_PACKED = 16;
constexpr int SLAB_WEIGHTS = SLAB_64 * 32 * 16;             // bytes
constexpr int SLAB_BYTES = SLAB_WEIGHTS + SLAB_64 * 8 * 4;  // with scales

// Scales that are multiplied in as above.
constexpr uint32_t LEAST_CODE = 8, MOST_CODE = 128;

// The four registers of a word, FP4 · 2^-126 as two bf16 each.
__device__ __forceinline__ void unpack(uint32_t (&r)[4], uint32_t word) {
    r[0] = word & 0x81c081c0u;
    r[1] = word << 3 & 0x81c081c0u;
    r[2] = (word >> 3 & 0x01c001c0u) | (word << 1 & 0x80008000u);
    r[3] = (word << 6 & 0x01c001c0u) | (word << 2 & 0x80008000u);
}

// 2^(code − 1) twice, as bf16.
__device__ __forceinline__ uint32_t scale_factor(uint32_t code) {
    return code * 0x00800080u + 0x3f003f00u;
}

// Products of the halves of two words of two bf16.
__device__ __forceinline__ uint32_t bf16x2_multiply(uint32_t a, uint32_t b) {
#if defined(__CUDACC__)
    uint32_t out;
    // A fused multiply-add of −0, since capability 8.0 has no multiplication.
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(0x80008000u));
    return out;
#else
    const float2 x = bf16x2_to_f32(a), y = bf16x2_to_f32(b);
    return f32_to_bf16x2(x.x * y.x, x.y * y.y);
#endif
}
