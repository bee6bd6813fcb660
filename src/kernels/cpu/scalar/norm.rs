//! RMS norm and rotary positions of one row.

use super::dot;

pub(in super::super) fn rms_norm(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let rsqrt = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * rsqrt * w;
    }
}

/// Rotates every head of `x: [heads, D]` by one row of `cos` and `sin`.
#[inline(always)]
pub(in super::super) fn rope(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for head in x.chunks_exact_mut(2 * cos.len()) {
        let (x1, x2) = head.split_at_mut(cos.len());
        for (((x1, x2), c), s) in x1.iter_mut().zip(x2).zip(cos).zip(sin) {
            (*x1, *x2) = (*x1 * c - *x2 * s, *x2 * c + *x1 * s);
        }
    }
}
