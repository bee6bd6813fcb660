// What the kernels of the experts share: MXFP4 in registers, and the activation.
//
// A word of a block holds eight features, feature i in bits 4i .. 4i+3: one sign bit, two of
// exponent, one of mantissa. Features i and i + 4 lie 16 bits apart, so one pair of shifts and
// masks puts both into the halves of a pair of 16-bit floats. A feature with exponent 0 becomes a
// subnormal there, which is right as it stands.
#pragma once
#include "products.cuh"

// What fp4x2_to_f32 lacks.
constexpr float FP4_UNIT = 16384.0f;

// FP4 · 2^-14 of features i and i + 4: as f16 whose lowest exponent bits and highest mantissa bit
// they are.
template <int i> __device__ __forceinline__ float2 fp4x2_to_f32(uint32_t word) {
    const uint32_t magnitude = i < 3 ? word << (i < 3 ? 9 - 4 * i : 0) : word >> 3;
    const uint32_t pair = (word << (12 - 4 * i) & 0x80008000u) | (magnitude & 0x0e000e00u);
    __half2 halves;
    memcpy(&halves, &pair, sizeof pair);
    return __half22float2(halves);
}

// g·σ(alpha·g)·(u + 1) of a gate and an up value. A comparison with NaN is false and hands it on.
__device__ __forceinline__ float clamped_swiglu(float gate, float up, float alpha, float limit) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
    return gate / (1.0f + expf(-alpha * gate)) * (up + 1.0f);
}
