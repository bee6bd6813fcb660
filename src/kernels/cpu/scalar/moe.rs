//! Routing and experts.

use super::sigmoid;
use crate::kernels::cpu::mxfp4::SCALES;
use crate::kernels::cpu::shares::Columns;
use crate::kernels::{FP4, MXFP4_BLOCK, SwigluParams};
use half::bf16;
use std::ops::Range;

/// One row of [`Cpu::topk_softmax`](crate::kernels::cpu::Cpu::topk_softmax).
pub(in super::super) fn topk_softmax(indices: &mut [u32], weights: &mut [f32], logits: &[f32]) {
    let k = indices.len();
    let mut chosen = 0;
    for (expert, &logit) in logits.iter().enumerate() {
        // Insertion into the descending list; an equal logit stays behind the earlier one.
        // NaN stays behind everything.
        let before = |w: f32| w >= logit || logit.is_nan();
        let at = weights[..chosen].iter().position(|&w| !before(w)).unwrap_or(chosen);
        if at == k {
            continue;
        }
        chosen = k.min(chosen + 1);
        indices.copy_within(at..chosen - 1, at + 1);
        weights.copy_within(at..chosen - 1, at + 1);
        (indices[at], weights[at]) = (expert as u32, logit);
    }
    let max = weights[0];
    let mut sum = 0.0;
    for weight in weights.iter_mut() {
        *weight = (*weight - max).exp();
        sum += *weight;
    }
    for weight in weights {
        *weight /= sum;
    }
}

/// One row in the tier's order of features: of each block first the low nibbles of its bytes (even
/// features), then the high ones.
pub(in super::super) fn mxfp4_decode(out: &mut [f32], blocks: &[u8], scales: &[u8]) {
    for ((out, block), &scale) in
        out.chunks_exact_mut(MXFP4_BLOCK).zip(blocks.chunks_exact(16)).zip(scales)
    {
        let scale = SCALES[usize::from(scale)];
        let (low, high) = out.split_at_mut(MXFP4_BLOCK / 2);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(block) {
            *low = FP4[usize::from(byte & 15)] * scale;
            *high = FP4[usize::from(byte >> 4)] * scale;
        }
    }
}

/// `out[t,o] = Σ_i x[t,i]·w[i,o]` for the outputs `range` of one transposed expert `[cols, rows]`.
pub(in super::super) fn bf16_matmul(
    out: &mut Columns<'_, f32>,
    w: &[bf16],
    range: Range<usize>,
    rows: usize,
    x: &[f32],
    cols: usize,
) {
    for (t, x) in x.chunks_exact(cols).enumerate() {
        let out = out.row(t);
        out.fill(0.0);
        for (x, w) in x.iter().zip(w.chunks_exact(rows)) {
            for (out, w) in out.iter_mut().zip(&w[range.clone()]) {
                *out += x * f32::from_bits(u32::from(w.to_bits()) << 16);
            }
        }
    }
}

/// The activation over interleaved gate and up values, after their bias.
pub(in super::super) fn swiglu(out: &mut [f32], h: &[f32], bias: &[bf16], params: SwigluParams) {
    for ((out, h), bias) in out.iter_mut().zip(h.chunks_exact(2)).zip(bias.chunks_exact(2)) {
        // clamp, unlike min, hands a NaN on
        let gate = (h[0] + bias[0].to_f32()).clamp(f32::NEG_INFINITY, params.limit);
        let up = (h[1] + bias[1].to_f32()).clamp(-params.limit, params.limit);
        *out = gate * sigmoid(params.alpha * gate) * (up + 1.0);
    }
}

/// `out += weight · (y + bias)`.
#[inline(always)]
pub(in super::super) fn combine(out: &mut [f32], y: &[f32], bias: &[bf16], weight: f32) {
    for ((out, y), bias) in out.iter_mut().zip(y).zip(bias) {
        *out += weight * (y + f32::from_bits(u32::from(bias.to_bits()) << 16));
    }
}
