// The paged cache on the device: where an element lies, and how numbers are stored in it.
//
// A page is keys [K, 64, D], then values [K, 64, D]. All lengths here are bytes, because a stored
// element has 4, 2 or 1 of them.
#pragma once
#include "args.cuh"

enum KvFormat { KV_F32 = 0, KV_BF16 = 1, KV_FP8 = 2 };

constexpr unsigned PAGE_TOKENS = 64;

__device__ constexpr int element_bytes(int format) {
    return format == KV_F32 ? 4 : format == KV_BF16 ? 2 : 1;
}

// Start of row `row` of kv head `head` of a page: of its keys (part 0) or its values (1).
__device__ __forceinline__ size_t row_start(size_t page, int part, int head, int row, int kv_heads,
                                            int row_bytes) {
    return (((page * 2 + part) * kv_heads + head) * PAGE_TOKENS + row) * size_t(row_bytes);
}

// E4M3FN, to nearest even, magnitudes above 448 to 448, NaN to 0x7f. In integers and one addition
// that rounds: older devices lack the conversion instruction, and few elements are written for each
// that is read.
__device__ __forceinline__ uint32_t e4m3_encode(float x) {
    const uint32_t sign = __float_as_uint(x) >> 24 & 0x80;
    const uint32_t bits = __float_as_uint(x) & 0x7fffffff;
    if (bits > 0x7f800000) return 0x7f;
    uint32_t code;
    if (bits >= 0x43e00000) {
        code = 0x7e;  // 448 and above
    } else if (bits >= 0x3c800000) {
        // Normal, 2^-6 and above: a carry out of the mantissa moves on into the exponent, whose
        // bias changes from 127 to 7.
        code = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - ((127 - 7) << 3);
    } else {
        // Subnormal, a multiple of 2^-9: beside 2^14 those are the last bits of the mantissa.
        code = __float_as_uint(__uint_as_float(bits) + 16384.0f) & 0xff;
    }
    return sign | code;
}

// BF16, to nearest even; NaN keeps its sign and what fits of its payload.
__device__ __forceinline__ uint32_t bf16_encode(float x) {
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
