// The small number formats under the names CUDA's headers give them, bit for bit as the device
// converts. Only what kernels use.
#pragma once

struct __nv_bfloat16_raw { uint16_t x; };
struct __nv_bfloat16 {
    uint16_t x;
    __nv_bfloat16() = default;
    __nv_bfloat16(__nv_bfloat16_raw r) : x(r.x) {}
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
inline float __bfloat162float(__nv_bfloat16 h) { return __uint_as_float(uint32_t(h.x) << 16); }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 h) { return h.x; }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t x) { return __nv_bfloat16_raw{x}; }
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
    const uint32_t u = __float_as_uint(f);
    if ((u & 0x7fffffff) > 0x7f800000) return __nv_bfloat16_raw{0x7fff};
    return __nv_bfloat16_raw{uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16(float f) { return __float2bfloat16_rn(f); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 h) {
    return {__bfloat162float(h.x), __bfloat162float(h.y)};
}

namespace emulator {
// The least exponent with a < 2^exponent, at least `lowest`.
inline int exponent_above(float a, int lowest) {
    int exponent = 0;
    frexpf(a, &exponent);
    return a == 0 || exponent < lowest ? lowest : exponent;
}
}  // namespace emulator

struct __half_raw { uint16_t x; };
struct __half {
    uint16_t x;
    __half() = default;
    __half(__half_raw r) : x(r.x) {}
};
inline uint16_t __half_as_ushort(__half h) { return h.x; }
struct __half2_raw { uint16_t x, y; };
struct alignas(4) __half2 {
    __half x, y;
    __half2() = default;
    __half2(__half x, __half y) : x(x), y(y) {}
    __half2(__half2_raw r) : x(__half_raw{r.x}), y(__half_raw{r.y}) {}
};
// Multiplied, subnormal numbers come out right as well.
inline float __half2float(__half h) {
    const uint32_t sign = uint32_t(h.x & 0x8000) << 16, magnitude = h.x & 0x7fff;
    if (magnitude > 0x7c00) return NAN;
    const float v = magnitude == 0x7c00 ? INFINITY : __uint_as_float(magnitude << 13) * 0x1p112f;
    return __uint_as_float(__float_as_uint(v) | sign);
}
// To nearest even. Values are scaled so that the wanted unit is 1, which nearbyint then rounds to.
inline __half __float2half_rn(float f) {
    const uint16_t sign = uint16_t(__float_as_uint(f) >> 16 & 0x8000);
    if (f != f) return __half_raw{0x7fff};
    const float a = fabsf(f);
    const int exponent = emulator::exponent_above(a, -13);  // subnormal below 2^-14
    const float units = nearbyintf(ldexpf(a, 11 - exponent));
    if (a >= 65520.0f) return __half_raw{uint16_t(sign | 0x7c00)};
    // units is in [1024, 2048] for normal numbers; 2048 carries into the exponent by itself.
    const int bits = (exponent + 13) * 1024 + int(units);
    return __half_raw{uint16_t(sign | bits)};
}
inline __half __float2half(float f) { return __float2half_rn(f); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline float __low2float(__half2 h) { return __half2float(h.x); }
inline float __high2float(__half2 h) { return __half2float(h.y); }
inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }

typedef uint8_t __nv_fp8_storage_t;
typedef uint16_t __nv_fp8x2_storage_t;
typedef uint8_t __nv_fp4x2_storage_t;
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
enum __nv_fp4_interpretation_t { __NV_E2M1 };
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };

namespace emulator {
inline float e4m3(uint8_t code) {
    const uint32_t sign = uint32_t(code & 0x80) << 24, magnitude = code & 0x7f;
    if (magnitude == 0x7f) return NAN;
    return __uint_as_float(__float_as_uint(__uint_as_float(magnitude << 20) * 0x1p120f) | sign);
}
// Of a value that is a normal half, or zero, or NaN.
inline uint16_t exact_half(float f) {
    const uint32_t bits = __float_as_uint(f), sign = bits >> 16 & 0x8000;
    if (f != f) return 0x7fff;
    return uint16_t(f == 0 ? sign : sign | ((bits & 0x7fffffff) - (112u << 23)) >> 13);
}
}  // namespace emulator

// E4M3 with saturation only. NaN loses its sign, as on the device.
inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float f, __nv_saturation_t saturation,
                                                __nv_fp8_interpretation_t format) {
    if (saturation != __NV_SATFINITE || format != __NV_E4M3) emulator::fail("an FP8 format kernels do not use");
    const uint8_t sign = __float_as_uint(f) >> 31 ? 0x80 : 0;
    if (f != f) return 0x7f;
    const float a = fminf(fabsf(f), 448.0f);
    const int exponent = emulator::exponent_above(a, -5);  // subnormal below 2^-6
    const int units = int(nearbyintf(ldexpf(a, 4 - exponent)));
    return uint8_t(sign | ((exponent + 5) * 8 + units));
}
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 f, __nv_saturation_t saturation,
                                                     __nv_fp8_interpretation_t format) {
    return __nv_fp8x2_storage_t(__nv_cvt_float_to_fp8(f.x, saturation, format) |
                                __nv_cvt_float_to_fp8(f.y, saturation, format) << 8);
}
inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t code, __nv_fp8_interpretation_t) {
    return {emulator::exact_half(emulator::e4m3(code))};
}
inline __half2_raw __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t codes, __nv_fp8_interpretation_t) {
    return {emulator::exact_half(emulator::e4m3(uint8_t(codes))),
            emulator::exact_half(emulator::e4m3(uint8_t(codes >> 8)))};
}
inline __half2_raw __nv_cvt_fp4x2_to_halfraw2(__nv_fp4x2_storage_t codes, __nv_fp4_interpretation_t) {
    static const float values[16] = {0,  .5f,  1,  1.5f,  2,  3,  4,  6,
                                     -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6};
    return {emulator::exact_half(values[codes & 15]), emulator::exact_half(values[codes >> 4])};
}
inline __nv_bfloat16_raw __nv_cvt_e8m0_to_bf16raw(uint8_t code) {
    return {uint16_t(code == 255 ? 0x7fff : code == 0 ? 0x0040 : code << 7)};
}
