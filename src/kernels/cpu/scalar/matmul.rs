//! Dense layers with bf16 weights.

use super::{LANES, sum};
use crate::kernels::cpu::shares::Columns;
use half::bf16;

/// `out[t,o] = bias[o] + Σ_i w[o,i]·x[t,i]` for the rows o of `w` and all rows t of `x`.
pub(in super::super) fn matmul(
    out: &mut Columns<'_, f32>,
    w: &[bf16],
    x: &[f32],
    bias: Option<&[f32]>,
    cols: usize,
) {
    for (o, w) in w.chunks_exact(cols).enumerate() {
        for (t, x) in x.chunks_exact(cols).enumerate() {
            let mut lanes = [0.0; LANES];
            for (w, x) in w.chunks(LANES).zip(x.chunks(LANES)) {
                for ((lane, w), x) in lanes.iter_mut().zip(w).zip(x) {
                    *lane += f32::from_bits(u32::from(w.to_bits()) << 16) * x;
                }
            }
            out.row(t)[o] = sum(lanes) + bias.map_or(0.0, |b| b[o]);
        }
    }
}
