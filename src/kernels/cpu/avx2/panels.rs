//! The product of panels; see [`crate::kernels::cpu::panels`].

use super::moe::decode_row;
use super::vector::{load_bf16, load_q8, sum};
use crate::kernels::Q8_BLOCK;
use crate::kernels::cpu::panels::Tile;
use crate::kernels::cpu::q8::Q8Rows;
use half::bf16;
use std::arch::x86_64::*;

const ROWS: usize = 4;
const INPUTS: usize = 3;

/// 12 sums, three inputs and one weight at a time are all 16 registers.
pub(in super::super) const TILE: Tile =
    Tile { rows: ROWS, inputs: INPUTS, lanes: 8, product, pack_bf16, pack_q8, pack_mxfp4 };

#[target_feature(enable = "avx2,fma,f16c")]
#[allow(clippy::needless_range_loop)] // indices say which of the tile
fn product(sums: &mut [f32], w: &[f32], x: &[f32]) {
    let (w, _) = w.as_chunks::<{ ROWS * 8 }>();
    let (x, _) = x.as_chunks::<{ INPUTS * 8 }>();
    let mut acc = [[_mm256_setzero_ps(); ROWS]; INPUTS];
    for (w, x) in w.iter().zip(x) {
        // SAFETY: ROWS vectors of 8 floats in `w`, INPUTS in `x`.
        unsafe {
            let mut inputs = [_mm256_setzero_ps(); INPUTS];
            for n in 0..INPUTS {
                inputs[n] = _mm256_loadu_ps(x.as_ptr().add(8 * n));
            }
            for r in 0..ROWS {
                let w = _mm256_loadu_ps(w.as_ptr().add(8 * r));
                for n in 0..INPUTS {
                    acc[n][r] = _mm256_fmadd_ps(w, inputs[n], acc[n][r]);
                }
            }
        }
    }
    for (sums, acc) in sums.chunks_exact_mut(ROWS).zip(acc) {
        for (to, acc) in sums.iter_mut().zip(acc) {
            *to = sum(acc);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn pack_bf16(panel: &mut [f32], at: usize, row: &[bf16]) {
    let (panel, _) = panel.as_chunks_mut::<{ ROWS * 8 }>();
    for (panel, row) in panel.iter_mut().zip(row.chunks(8)) {
        let mut part = [bf16::ZERO; 8];
        part[..row.len()].copy_from_slice(row);
        let to = &mut panel[8 * at..][..8];
        // SAFETY: 8 elements on both sides.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), load_bf16(part.as_ptr())) };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn pack_q8(panel: &mut [f32], at: usize, row: Q8Rows<'_>) {
    let (panel, _) = panel.as_chunks_mut::<{ 4 * ROWS * 8 }>();
    let (blocks, _) = row.quants.as_chunks::<Q8_BLOCK>();
    for ((panel, block), &scale) in panel.iter_mut().zip(blocks).zip(row.scales) {
        for quarter in 0..4 {
            let to = &mut panel[(quarter * ROWS + at) * 8..][..8];
            // SAFETY: 8 elements on both sides.
            unsafe {
                let vector = load_q8(block.as_ptr().add(8 * quarter), scale);
                _mm256_storeu_ps(to.as_mut_ptr(), vector);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn pack_mxfp4(panel: &mut [f32], at: usize, blocks: &[u8], scales: &[u8]) {
    decode_row::<ROWS>(panel, at, blocks, scales);
}
