//! Embedding, norm, dense layers and rotary positions.

use super::Bounded;
use super::numbers::bf16_encode;
use crate::kernels::{Activations, Dense, Q8_BLOCK};
use half::bf16;

/// `out[t,:] = table[token[t],:]`.
pub fn embedding(table: &[bf16], tokens: &[u32], hidden: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for &token in tokens {
        for i in 0..hidden {
            out.push(table[token as usize * hidden + i].to_f32());
        }
    }
    out
}

/// `x · rsqrt(mean(x²) + eps) · w` per row of `w.len()` values. `terms` is the value's own magnitude:
/// the mean is a sum of positive terms, so its relative error is at most that of n additions.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Bounded {
    let hidden = weight.len();
    let mut out = Bounded::with_capacity(x.len());
    for row in x.chunks(hidden) {
        let mut sum = 0.0;
        for &x in row {
            sum += f64::from(x) * f64::from(x);
        }
        let rsqrt = 1.0 / (sum / hidden as f64 + f64::from(eps)).sqrt();
        for (&x, &w) in row.iter().zip(weight) {
            let y = f64::from(x) * rsqrt * f64::from(w);
            out.push(y, y.abs());
        }
    }
    out
}

/// What a product multiplies instead of `x`: with [`Activations::Bf16`] the nearest finite number of bf16
/// to each finite one, ties to even. [`matmul`], [`moe_gate_up`](super::moe_gate_up) and
/// [`moe_down`](super::moe_down) take it as it comes.
pub fn activations(x: &[f32], mode: Activations) -> Vec<f32> {
    x.iter()
        .map(|&x| match mode {
            Activations::Exact => x,
            // Rounds like any number of bf16, but never to infinity.
            Activations::Bf16 if x.is_finite() => {
                let largest = bf16::MAX.to_f32();
                bf16::from_bits(bf16_encode(x.clamp(-largest, largest))).to_f32()
            }
            Activations::Bf16 => x,
        })
        .collect()
}

/// `out[t,o] = bias[o] + Σ_i w[o,i]·x[t,i]`.
pub fn matmul(w: Dense, x: &[f32], bias: Option<&[f32]>, rows: usize, cols: usize) -> Bounded {
    let mut out = Bounded::with_capacity(x.len() / cols * rows);
    for x in x.chunks(cols) {
        for o in 0..rows {
            let mut sum = bias.map_or(0.0, |b| f64::from(b[o]));
            let mut terms = sum.abs();
            for i in 0..cols {
                let weight = match w {
                    Dense::Bf16(w) => w[o * cols + i].to_f64(),
                    Dense::Q8 { quants, scales } => {
                        let at = o * cols + i;
                        f64::from(quants[at]) * scales[at / Q8_BLOCK].to_f64()
                    }
                };
                let term = weight * f64::from(x[i]);
                sum += term;
                terms += term.abs();
            }
            out.push(sum, terms);
        }
    }
    out
}

/// Q8 blocks of `w`: the quants and their scales. The scale is the largest magnitude over 127, rounded
/// up to bf16 so that no quant is cut off; a block of zeros has the scale 0.
pub fn q8_encode(w: &[bf16]) -> (Vec<i8>, Vec<bf16>) {
    let (mut quants, mut scales) = (Vec::new(), Vec::new());
    for block in w.chunks(Q8_BLOCK) {
        let largest = block.iter().fold(0.0, |largest: f32, w| largest.max(w.to_f32().abs()));
        let exact = largest / 127.0;
        let mut scale = bf16::from_bits((exact.to_bits() >> 16) as u16);
        if scale.to_f32() < exact {
            scale = bf16::from_bits(scale.to_bits() + 1);
        }
        scales.push(scale);
        for w in block {
            let quant = if largest > 0.0 { w.to_f32() / scale.to_f32() } else { 0.0 };
            quants.push(quant.round_ties_even() as i8);
        }
    }
    (quants, scales)
}

/// Rotates the pairs `(i, i + D/2)` of every head of every row: `(x1·c − x2·s, x2·c + x1·s)`.
pub fn rope(x: &[f32], cos: &[f32], sin: &[f32], heads: usize, head_dim: usize) -> Bounded {
    let half = head_dim / 2;
    let mut out = Bounded::with_capacity(x.len());
    for (row, x) in x.chunks(heads * head_dim).enumerate() {
        for x in x.chunks(head_dim) {
            for i in 0..head_dim {
                let angle = row * half + i % half;
                let (c, s) = (f64::from(cos[angle]), f64::from(sin[angle]));
                let (x1, x2) = (f64::from(x[i % half]), f64::from(x[half + i % half]));
                let (a, b) = if i < half { (x1 * c, -x2 * s) } else { (x2 * c, x1 * s) };
                out.push(a + b, a.abs() + b.abs());
            }
        }
    }
    out
}
