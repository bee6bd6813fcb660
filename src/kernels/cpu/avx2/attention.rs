//! Online softmax over one page of one kv head.

use super::vector::{exp, sum, sums};
use crate::kernels::PAGE_TOKENS;
use crate::kernels::cpu::attention::Partial;
use std::arch::x86_64::*;
use std::ops::Range;

#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn attention_page(
    state: &mut Partial<'_>,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    visible: Range<usize>,
    scale: f32,
    weights: &mut [f32],
) {
    let group = state.max.len();
    let head_dim = q.len() / group;
    assert!(visible.end <= PAGE_TOKENS && head_dim.is_multiple_of(16), "visible");
    assert!(k.len() == PAGE_TOKENS * head_dim && v.len() == k.len(), "k, v");
    assert!(state.acc.len() == q.len() && weights.len() == group * PAGE_TOKENS, "state");
    for (head, q) in q.chunks_exact(head_dim).enumerate() {
        let weights = &mut weights[head * PAGE_TOKENS..][..PAGE_TOKENS];
        let max = scores(weights, q, k, visible.clone(), scale).max(state.max[head]);
        let rescale = exp(_mm256_set1_ps(state.max[head] - max));
        let total = exponentials(weights, visible.clone(), max);
        state.max[head] = max;
        state.sum[head] = state.sum[head] * _mm256_cvtss_f32(rescale) + total;
        for acc in state.acc[head * head_dim..][..head_dim].as_chunks_mut::<8>().0 {
            // SAFETY: 8 floats.
            unsafe {
                let acc = acc.as_mut_ptr();
                _mm256_storeu_ps(acc, _mm256_mul_ps(_mm256_loadu_ps(acc), rescale));
            }
        }
    }
    let mut head = 0;
    while head < group {
        let heads = if group - head >= 4 { 4 } else { 1 };
        for d in (0..head_dim).step_by(16) {
            let acc = state.acc[head * head_dim + d..].as_mut_ptr();
            let weights = weights[head * PAGE_TOKENS..].as_ptr();
            let v = v[d..].as_ptr();
            // SAFETY: `heads` heads from `head` on and 16 dimensions from `d` on exist in the
            // accumulators and values, whose lengths are asserted above.
            unsafe {
                match heads {
                    4 => values::<4>(acc, weights, v, head_dim, visible.clone()),
                    _ => values::<1>(acc, weights, v, head_dim, visible.clone()),
                }
            }
        }
        head += heads;
    }
}

/// `weights[r] = scale · q·k[r]`, −inf where r is not visible, 8 positions at a time; returns the
/// largest.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scores(weights: &mut [f32], q: &[f32], k: &[f32], visible: Range<usize>, scale: f32) -> f32 {
    let head_dim = q.len();
    assert_eq!(k.len(), PAGE_TOKENS * head_dim, "k");
    let mut max = f32::NEG_INFINITY;
    for (i, weights) in groups(weights, &visible) {
        let mut acc = [_mm256_setzero_ps(); 8];
        for d in (0..head_dim).step_by(8) {
            // SAFETY: 8 floats from d on, within the query and within keys 8·i to 8·i + 7 of the
            // 64 that `k` is asserted to hold.
            unsafe {
                let q = _mm256_loadu_ps(q.as_ptr().add(d));
                let k = k.as_ptr().add(8 * i * head_dim + d);
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm256_fmadd_ps(q, _mm256_loadu_ps(k.add(r * head_dim)), *acc);
                }
            }
        }
        // SAFETY: 8 floats.
        unsafe {
            let score = _mm256_mul_ps(sums(&acc), _mm256_set1_ps(scale));
            _mm256_storeu_ps(weights.as_mut_ptr(), score);
        }
        // Positions that are not visible may hold anything, NaN too.
        for (r, weight) in weights.iter_mut().enumerate() {
            if !visible.contains(&(8 * i + r)) {
                *weight = f32::NEG_INFINITY;
            }
            max = max.max(*weight);
        }
    }
    max
}

/// `weights[r] = e^(weights[r] − max)` for the groups of 8 that are seen; returns their sum.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn exponentials(weights: &mut [f32], visible: Range<usize>, max: f32) -> f32 {
    let mut total = _mm256_setzero_ps();
    for (_, weights) in groups(weights, &visible) {
        // SAFETY: 8 floats.
        unsafe {
            let score = _mm256_loadu_ps(weights.as_ptr());
            let weight = exp(_mm256_sub_ps(score, _mm256_set1_ps(max)));
            _mm256_storeu_ps(weights.as_mut_ptr(), weight);
            total = _mm256_add_ps(total, weight);
        }
    }
    sum(total)
}

/// The groups of 8 positions of which some are visible, with their number.
fn groups<'a>(
    weights: &'a mut [f32],
    visible: &Range<usize>,
) -> impl Iterator<Item = (usize, &'a mut [f32; 8])> {
    let seen = visible.start / 8..visible.end.div_ceil(8);
    let (groups, _) = weights.as_chunks_mut::<8>();
    groups.iter_mut().enumerate().skip(seen.start).take(seen.len())
}

/// `acc[h,d] += Σ_r weights[h,r]·v[r,d]` over the visible r in order, for H heads and 16 dimensions.
///
/// # Safety
///
/// The pointers are valid for H heads and 16 dimensions at the strides of a page.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
#[allow(clippy::needless_range_loop)] // indices say which of the tile
unsafe fn values<const H: usize>(
    acc: *mut f32,
    weights: *const f32,
    v: *const f32,
    head_dim: usize,
    visible: Range<usize>,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; H];
        for h in 0..H {
            for j in 0..2 {
                sums[h][j] = _mm256_loadu_ps(acc.add(h * head_dim + 8 * j));
            }
        }
        for r in visible {
            let mut row = [_mm256_setzero_ps(); 2];
            for j in 0..2 {
                row[j] = _mm256_loadu_ps(v.add(r * head_dim + 8 * j));
            }
            for h in 0..H {
                let weight = _mm256_set1_ps(*weights.add(h * PAGE_TOKENS + r));
                for j in 0..2 {
                    sums[h][j] = _mm256_fmadd_ps(weight, row[j], sums[h][j]);
                }
            }
        }
        for h in 0..H {
            for j in 0..2 {
                _mm256_storeu_ps(acc.add(h * head_dim + 8 * j), sums[h][j]);
            }
        }
    }
}
