//! RMS norm and rotary positions of one row.

use super::vector::{first, sum};
use crate::kernels::cpu::scalar;
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(in super::super) fn rms_norm(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let mut acc = _mm512_setzero_ps();
    for x in x.chunks(16) {
        // SAFETY: the mask keeps to the chunk.
        let x = unsafe { _mm512_maskz_loadu_ps(first(x.len()), x.as_ptr()) };
        acc = _mm512_fmadd_ps(x, x, acc);
    }
    let rsqrt = 1.0 / (sum(acc) / x.len() as f32 + eps).sqrt();
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * rsqrt * w;
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(in super::super) fn rope(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    scalar::rope(x, cos, sin);
}
