//! Online softmax over one page of one kv head.

use super::dot;
use crate::kernels::PAGE_TOKENS;
use crate::kernels::cpu::attention::Partial;
use std::ops::Range;

/// Adds the positions `visible` of a page with keys and values `[64, D]` to `state`, for the query
/// heads `q: [G, D]` that share them. `weights: [G, 64]` is scratch.
pub(in super::super) fn attention_page(
    state: &mut Partial<'_>,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    visible: Range<usize>,
    scale: f32,
    weights: &mut [f32],
) {
    let head_dim = q.len() / state.max.len();
    for (head, q) in q.chunks_exact(head_dim).enumerate() {
        let weights = &mut weights[head * PAGE_TOKENS..][visible.clone()];
        let keys = k[visible.start * head_dim..].chunks_exact(head_dim);
        let mut max = state.max[head];
        for (weight, k) in weights.iter_mut().zip(keys) {
            *weight = dot(q, k) * scale;
            max = max.max(*weight);
        }
        let acc = &mut state.acc[head * head_dim..][..head_dim];
        let rescale = (state.max[head] - max).exp();
        state.max[head] = max;
        state.sum[head] *= rescale;
        acc.iter_mut().for_each(|acc| *acc *= rescale);
        let values = v[visible.start * head_dim..].chunks_exact(head_dim);
        for (weight, v) in weights.iter().zip(values) {
            let weight = (weight - max).exp();
            state.sum[head] += weight;
            for (acc, v) in acc.iter_mut().zip(v) {
                *acc += weight * v;
            }
        }
    }
}
