//! RMS norm and rotary positions of one row.

use super::vector::{load_part, sum};
use crate::kernels::cpu::scalar;
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn rms_norm(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let (vectors, tail) = x.as_chunks::<8>();
    let tail = load_part(tail);
    let mut acc = _mm256_mul_ps(tail, tail);
    for x in vectors {
        // SAFETY: 8 floats.
        let x = unsafe { _mm256_loadu_ps(x.as_ptr()) };
        acc = _mm256_fmadd_ps(x, x, acc);
    }
    let rsqrt = 1.0 / (sum(acc) / x.len() as f32 + eps).sqrt();
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * rsqrt * w;
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn rope(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    scalar::rope(x, cos, sin);
}
