//! Online softmax over one page of one kv head.

use super::vector::{exp, sum, sums};
use crate::kernels::PAGE_TOKENS;
use crate::kernels::cpu::attention::Partial;
use std::arch::x86_64::*;
use std::ops::Range;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
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
        let rescale = exp(_mm512_set1_ps(state.max[head] - max));
        let total = exponentials(weights, visible.clone(), max);
        state.max[head] = max;
        state.sum[head] = state.sum[head] * _mm512_cvtss_f32(rescale) + total;
        for acc in state.acc[head * head_dim..][..head_dim].as_chunks_mut::<16>().0 {
            // SAFETY: 16 floats.
            unsafe {
                let acc = acc.as_mut_ptr();
                _mm512_storeu_ps(acc, _mm512_mul_ps(_mm512_loadu_ps(acc), rescale));
            }
        }
    }
    let mut head = 0;
    while head < group {
        let heads = if group - head >= 4 { 4 } else { 1 };
        let mut d = 0;
        while d < head_dim {
            let dims = if head_dim - d >= 64 { 64 } else { 16 };
            let acc = state.acc[head * head_dim + d..].as_mut_ptr();
            let weights = weights[head * PAGE_TOKENS..].as_ptr();
            let v = v[d..].as_ptr();
            // SAFETY: `heads` heads from `head` on and `dims` dimensions from `d` on exist in the
            // accumulators and values, whose lengths are asserted above.
            unsafe {
                match (heads, dims) {
                    (4, 64) => values::<4, 4>(acc, weights, v, head_dim, visible.clone()),
                    (4, _) => values::<4, 1>(acc, weights, v, head_dim, visible.clone()),
                    (_, 64) => values::<1, 4>(acc, weights, v, head_dim, visible.clone()),
                    _ => values::<1, 1>(acc, weights, v, head_dim, visible.clone()),
                }
            }
            d += dims;
        }
        head += heads;
    }
}

/// `weights[r] = scale · q·k[r]`, −inf where r is not visible, 16 positions at a time; returns the
/// largest.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn scores(weights: &mut [f32], q: &[f32], k: &[f32], visible: Range<usize>, scale: f32) -> f32 {
    let head_dim = q.len();
    assert_eq!(k.len(), PAGE_TOKENS * head_dim, "k");
    let mut max = _mm512_set1_ps(f32::NEG_INFINITY);
    for (i, weights) in weights.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let mask = lanes(&visible, i);
        if mask == 0 {
            continue;
        }
        let mut acc = [_mm512_setzero_ps(); 16];
        for d in (0..head_dim).step_by(16) {
            // SAFETY: 16 floats from d on, within the query and within keys 16·i to 16·i + 15 of the
            // 64 that `k` is asserted to hold.
            unsafe {
                let q = _mm512_loadu_ps(q.as_ptr().add(d));
                let k = k.as_ptr().add(16 * i * head_dim + d);
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm512_fmadd_ps(q, _mm512_loadu_ps(k.add(r * head_dim)), *acc);
                }
            }
        }
        let score = _mm512_mul_ps(sums(&acc), _mm512_set1_ps(scale));
        // Positions that are not visible may hold anything, NaN too.
        let score = _mm512_mask_mov_ps(_mm512_set1_ps(f32::NEG_INFINITY), mask, score);
        max = _mm512_max_ps(max, score);
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(weights.as_mut_ptr(), score) };
    }
    _mm512_reduce_max_ps(max)
}

/// `weights[r] = e^(weights[r] − max)` for the groups of 16 that are seen; returns their sum.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn exponentials(weights: &mut [f32], visible: Range<usize>, max: f32) -> f32 {
    let mut total = _mm512_setzero_ps();
    for (i, weights) in weights.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        if lanes(&visible, i) != 0 {
            // SAFETY: 16 floats.
            unsafe {
                let score = _mm512_loadu_ps(weights.as_ptr());
                let weight = exp(_mm512_sub_ps(score, _mm512_set1_ps(max)));
                _mm512_storeu_ps(weights.as_mut_ptr(), weight);
                total = _mm512_add_ps(total, weight);
            }
        }
    }
    sum(total)
}

/// Which of the positions `16·i .. 16·i + 16` are visible.
#[inline(always)]
fn lanes(visible: &Range<usize>, i: usize) -> __mmask16 {
    let below = |end: usize| super::vector::first(end.saturating_sub(16 * i));
    below(visible.end) & !below(visible.start)
}

/// `acc[h,d] += Σ_r weights[h,r]·v[r,d]` over the visible r in order, for H heads and 16·J dimensions.
///
/// # Safety
///
/// The pointers are valid for H heads and 16·J dimensions at the strides of a page.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[allow(clippy::needless_range_loop)] // indices say which of the tile
unsafe fn values<const H: usize, const J: usize>(
    acc: *mut f32,
    weights: *const f32,
    v: *const f32,
    head_dim: usize,
    visible: Range<usize>,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); J]; H];
        for h in 0..H {
            for j in 0..J {
                sums[h][j] = _mm512_loadu_ps(acc.add(h * head_dim + 16 * j));
            }
        }
        for r in visible {
            let mut row = [_mm512_setzero_ps(); J];
            for j in 0..J {
                row[j] = _mm512_loadu_ps(v.add(r * head_dim + 16 * j));
            }
            for h in 0..H {
                let weight = _mm512_set1_ps(*weights.add(h * PAGE_TOKENS + r));
                for j in 0..J {
                    sums[h][j] = _mm512_fmadd_ps(weight, row[j], sums[h][j]);
                }
            }
        }
        for h in 0..H {
            for j in 0..J {
                _mm512_storeu_ps(acc.add(h * head_dim + 16 * j), sums[h][j]);
            }
        }
    }
}
