//! Routing and experts.

use super::Bounded;
use super::numbers::{e8m0, fp4};
use crate::kernels::{ExpertShape, Experts, SwigluParams};
use half::bf16;

/// The k largest logits of each row in descending order, ties to the lower index, and their softmax.
/// Returns the indices and, for the weights, `terms` = the weight itself.
pub fn topk_softmax(logits: &[f32], experts: usize, k: usize) -> (Vec<u32>, Bounded) {
    let (mut indices, mut weights) = (Vec::new(), Bounded::with_capacity(k));
    for row in logits.chunks(experts) {
        let mut ranked: Vec<usize> = (0..experts).collect();
        // A stable sort keeps the lower index first among equals; NaN goes last.
        ranked.sort_by(|&a, &b| {
            let key =
                |i: usize| if row[i].is_nan() { f64::NEG_INFINITY } else { f64::from(row[i]) };
            let nan_last = row[a].is_nan().cmp(&row[b].is_nan());
            nan_last.then(key(b).partial_cmp(&key(a)).expect("no NaN"))
        });
        let chosen = &ranked[..k];
        let max = f64::from(row[chosen[0]]);
        let sum: f64 = chosen.iter().map(|&i| (f64::from(row[i]) - max).exp()).sum();
        for &i in chosen {
            indices.push(i as u32);
            let weight = (f64::from(row[i]) - max).exp() / sum;
            // The subtraction rounds relative to the distance, which the exponential passes on.
            weights.push(weight, weight * (1.0 + (f64::from(row[i]) - max).abs()));
        }
    }
    (indices, weights)
}

/// `FP4[nibble] · 2^(scale − 127)` for every element, in the order of the features.
pub fn mxfp4_decode(blocks: &[u8], scales: &[u8]) -> Vec<f32> {
    let mut out = Vec::new();
    for (block, &scale) in blocks.chunks(16).zip(scales) {
        for &byte in block {
            out.push((fp4(byte & 15) * e8m0(scale)) as f32);
            out.push((fp4(byte >> 4) * e8m0(scale)) as f32);
        }
    }
    out
}

/// Element `[expert, row, col]` of the matrix that multiplies a column vector.
pub fn expert_weight(w: Experts, shape: ExpertShape, expert: usize, row: usize, col: usize) -> f64 {
    let ExpertShape { rows, cols, .. } = shape;
    match w {
        Experts::Mxfp4 { blocks, scales } => {
            let row = expert * rows + row;
            let byte = blocks[row * cols / 2 + col / 2];
            let nibble = if col.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
            fp4(nibble) * e8m0(scales[row * cols / 32 + col / 32])
        }
        Experts::Bf16(w) => w[(expert * cols + col) * rows + row].to_f64(),
    }
}

/// `bias + W[expert]·x` for one row, with its terms.
fn expert_dot(
    w: Experts,
    bias: &[bf16],
    shape: ExpertShape,
    expert: usize,
    row: usize,
    x: &[f32],
) -> (f64, f64) {
    let mut sum = bias[expert * shape.rows + row].to_f64();
    let mut terms = sum.abs();
    for (col, &x) in x.iter().enumerate() {
        let term = expert_weight(w, shape, expert, row, col) * f64::from(x);
        sum += term;
        terms += term.abs();
    }
    (sum, terms)
}

/// `h = W[e]·x + b[e]`, `g = min(h[2i], limit)`, `u = clamp(h[2i+1], ±limit)`, `g·σ(alpha·g)·(u+1)`.
///
/// `terms` carries the errors of g and u through the activation: its derivative in g is at most
/// 1.1·|u + 1| (`x·σ(x)` has slopes in −0.1..1.1), in u it is `g·σ(alpha·g)`.
pub fn moe_gate_up(
    w: Experts,
    bias: &[bf16],
    shape: ExpertShape,
    x: &[f32],
    indices: &[u32],
    k: usize,
    swiglu: SwigluParams,
) -> Bounded {
    let limit = f64::from(swiglu.limit);
    let mut out = Bounded::with_capacity(indices.len() * shape.rows / 2);
    for (pair, &expert) in indices.iter().enumerate() {
        let x = &x[pair / k * shape.cols..][..shape.cols];
        for i in 0..shape.rows / 2 {
            let (gate, gate_terms) = expert_dot(w, bias, shape, expert as usize, 2 * i, x);
            let (up, up_terms) = expert_dot(w, bias, shape, expert as usize, 2 * i + 1, x);
            let (g, u) = (gate.clamp(f64::NEG_INFINITY, limit), up.clamp(-limit, limit));
            let z = f64::from(swiglu.alpha) * g;
            let activated = g / (1.0 + (-z).exp());
            let terms = 1.1 * (u + 1.0).abs() * gate_terms
                + activated.abs() * (up_terms + u.abs() + 1.0)
                + activated.abs() * (u + 1.0).abs() * (1.0 + z.abs());
            out.push(activated * (u + 1.0), terms);
        }
    }
    out
}

/// `out[t,:] = Σ_j weight[t,j] · (W[e_j]·a[t·k+j,:] + b[e_j])`.
pub fn moe_down(
    w: Experts,
    bias: &[bf16],
    shape: ExpertShape,
    a: &[f32],
    indices: &[u32],
    weights: &[f32],
    k: usize,
) -> Bounded {
    let mut out = Bounded::with_capacity(indices.len() / k * shape.rows);
    for t in 0..indices.len() / k {
        for row in 0..shape.rows {
            let (mut sum, mut terms) = (0.0, 0.0);
            for pair in t * k..(t + 1) * k {
                let a = &a[pair * shape.cols..][..shape.cols];
                let (y, y_terms) = expert_dot(w, bias, shape, indices[pair] as usize, row, a);
                sum += f64::from(weights[pair]) * y;
                terms += f64::from(weights[pair]).abs() * y_terms;
            }
            out.push(sum, terms);
        }
    }
    out
}
