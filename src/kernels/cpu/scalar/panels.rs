//! The product of panels, of one row each: the rows themselves.

use super::{LANES, dot, mxfp4_decode, widen};
use crate::kernels::Q8_BLOCK;
use crate::kernels::cpu::panels::Tile;
use crate::kernels::cpu::q8::Q8Rows;
use half::bf16;

pub(in super::super) const TILE: Tile =
    Tile { rows: 1, inputs: 1, lanes: LANES, product, pack_bf16, pack_q8, pack_mxfp4 };

fn product(sums: &mut [f32], w: &[f32], x: &[f32]) {
    sums[0] = dot(w, x);
}

fn pack_bf16(panel: &mut [f32], _: usize, row: &[bf16]) {
    let (panel, rest) = panel.split_at_mut(row.len());
    widen(panel, row);
    rest.fill(0.0);
}

fn pack_q8(panel: &mut [f32], _: usize, row: Q8Rows<'_>) {
    let blocks = row.quants.chunks_exact(Q8_BLOCK).zip(row.scales);
    for (panel, (block, scale)) in panel.chunks_exact_mut(Q8_BLOCK).zip(blocks) {
        for (to, quant) in panel.iter_mut().zip(block) {
            *to = f32::from(*quant) * scale.to_f32();
        }
    }
}

fn pack_mxfp4(panel: &mut [f32], _: usize, blocks: &[u8], scales: &[u8]) {
    mxfp4_decode(panel, blocks, scales);
}
