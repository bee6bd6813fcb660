//! Conversions between f32 and the storage types.

use crate::kernels::cpu::fp8;
use half::bf16;

/// `out = x`, exact.
#[inline(always)]
pub(in super::super) fn widen(out: &mut [f32], x: &[bf16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f32::from_bits(u32::from(x.to_bits()) << 16);
    }
}

/// Rounds to nearest even; NaN stays NaN.
#[inline(always)]
pub(in super::super) fn encode_bf16(out: &mut [bf16], x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        let bits = x.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        let quiet = (bits >> 16) as u16 | 0x40;
        *out = bf16::from_bits(if x.is_nan() { quiet } else { rounded });
    }
}

/// E4M3FN of `x / scale`.
#[inline(always)]
pub(in super::super) fn encode_fp8(out: &mut [u8], x: &[f32], scale: f32) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = fp8::fp8_encode(x / scale);
    }
}

/// `out = value(x) · scale`.
pub(in super::super) fn decode_fp8(out: &mut [f32], x: &[u8], scale: f32) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = fp8::fp8_decode(x) * scale;
    }
}
