//! Portable tier. Sums keep [`LANES`] partial sums, so that a compiler may use the vectors every
//! machine has without reordering anything.

mod attention;
mod convert;
mod moe;
mod norm;
mod panels;

pub(super) use attention::attention_page;
pub(super) use convert::{decode_fp8, encode_bf16, encode_fp8, widen};
pub(super) use moe::{bf16_matmul, combine, mxfp4_decode, swiglu, topk_softmax};
pub(super) use norm::{rms_norm, rope};
pub(super) use panels::TILE;

/// Partial sums of one reduction.
const LANES: usize = 8;

/// Adds the partial sums as a tree.
#[inline(always)]
fn sum(lanes: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// `Σ a·b`. Element i goes to partial sum i mod 8, whatever the length.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    sum(lanes)
}

/// `1 / (1 + e^(−x))`, as `e^x / (1 + e^x)`: accurate for negative x, where the gate is not clamped.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    let e = x.clamp(f32::NEG_INFINITY, 88.0).exp(); // above 88 the quotient is 1; clamp keeps NaN
    e / (1.0 + e)
}
