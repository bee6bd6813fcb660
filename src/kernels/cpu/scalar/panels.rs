//! The product of panels, of one row each: the rows themselves.

use super::{LANES, dot, mxfp4_decode, widen};
use crate::kernels::cpu::panels::Tile;
use half::bf16;

pub(in super::super) const TILE: Tile =
    Tile { rows: 1, inputs: 1, lanes: LANES, product, pack_bf16, pack_mxfp4 };

fn product(sums: &mut [f32], w: &[f32], x: &[f32]) {
    sums[0] = dot(w, x);
}

fn pack_bf16(panel: &mut [f32], _: usize, row: &[bf16]) {
    let (panel, rest) = panel.split_at_mut(row.len());
    widen(panel, row);
    rest.fill(0.0);
}

fn pack_mxfp4(panel: &mut [f32], _: usize, blocks: &[u8], scales: &[u8]) {
    mxfp4_decode(panel, blocks, scales);
}
