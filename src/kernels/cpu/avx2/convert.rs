//! Conversions between f32 and the storage types. The compiler vectorises the scalar loops well once it
//! may use this tier's instructions; only the decoding of FP8 needs help.

use crate::kernels::cpu::{fp8, scalar};
use half::bf16;
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn widen(out: &mut [f32], x: &[bf16]) {
    scalar::widen(out, x);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn encode_bf16(out: &mut [bf16], x: &[f32]) {
    scalar::encode_bf16(out, x);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn encode_fp8(out: &mut [u8], x: &[f32], scale: f32) {
    scalar::encode_fp8(out, x, scale);
}

/// The seven bits below the sign, moved up by seven, are an f16 of 2^-8 times the value: its exponent
/// bias is 15 instead of 7, and its subnormals convert without a penalty.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn decode_fp8(out: &mut [f32], x: &[u8], scale: f32) {
    let (shift, scale_vector) = (_mm256_set1_ps(256.0), _mm256_set1_ps(scale));
    let (outs, out_tail) = out.as_chunks_mut::<8>();
    let (xs, x_tail) = x.as_chunks::<8>();
    for (out, x) in outs.iter_mut().zip(xs) {
        // SAFETY: 8 bytes.
        let x = unsafe { _mm_cvtepu8_epi16(_mm_loadl_epi64(x.as_ptr().cast())) };
        let magnitude = _mm_and_si128(x, _mm_set1_epi16(0x7f));
        let sign = _mm_slli_epi16::<8>(_mm_and_si128(x, _mm_set1_epi16(0x80)));
        let half = _mm_or_si128(_mm_slli_epi16::<7>(magnitude), sign);
        let nan = _mm256_cvtepi16_epi32(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f)));
        let value = _mm256_mul_ps(_mm256_cvtph_ps(half), shift);
        // A lane of ones is a NaN.
        let value = _mm256_or_ps(value, _mm256_castsi256_ps(nan));
        // SAFETY: 8 floats.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(value, scale_vector)) };
    }
    for (out, &x) in out_tail.iter_mut().zip(x_tail) {
        *out = fp8::fp8_decode(x) * scale;
    }
}
