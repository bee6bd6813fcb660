//! The product of panels; see [`crate::kernels::cpu::panels`].

use super::moe::decode_row;
use super::vector::{first, load_bf16, load_bf16_part, load_q8, sum};
use crate::kernels::Q8_BLOCK;
use crate::kernels::cpu::panels::Tile;
use crate::kernels::cpu::q8::Q8Rows;
use half::bf16;
use std::arch::x86_64::*;

const ROWS: usize = 8;
const INPUTS: usize = 3;

/// 24 sums, three inputs and one weight at a time are 28 of the 32 registers.
pub(in super::super) const TILE: Tile =
    Tile { rows: ROWS, inputs: INPUTS, lanes: 16, product, pack_bf16, pack_q8, pack_mxfp4 };

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[allow(clippy::needless_range_loop)] // indices say which of the tile
fn product(sums: &mut [f32], w: &[f32], x: &[f32]) {
    let (w, _) = w.as_chunks::<{ ROWS * 16 }>();
    let (x, _) = x.as_chunks::<{ INPUTS * 16 }>();
    let mut acc = [[_mm512_setzero_ps(); ROWS]; INPUTS];
    for (w, x) in w.iter().zip(x) {
        // SAFETY: ROWS vectors of 16 floats in `w`, INPUTS in `x`.
        unsafe {
            let mut inputs = [_mm512_setzero_ps(); INPUTS];
            for n in 0..INPUTS {
                inputs[n] = _mm512_loadu_ps(x.as_ptr().add(16 * n));
            }
            for r in 0..ROWS {
                let w = _mm512_loadu_ps(w.as_ptr().add(16 * r));
                for n in 0..INPUTS {
                    acc[n][r] = _mm512_fmadd_ps(w, inputs[n], acc[n][r]);
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

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn pack_bf16(panel: &mut [f32], at: usize, row: &[bf16]) {
    let (panel, _) = panel.as_chunks_mut::<{ ROWS * 16 }>();
    for (panel, row) in panel.iter_mut().zip(row.chunks(16)) {
        // SAFETY: `row` has these elements, and `at`, a row of the panel, 16 floats in it.
        unsafe {
            let vector = match row.len() {
                16 => load_bf16(row.as_ptr()),
                part => load_bf16_part(row.as_ptr(), first(part)),
            };
            _mm512_storeu_ps(panel[16 * at..][..16].as_mut_ptr(), vector);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn pack_q8(panel: &mut [f32], at: usize, row: Q8Rows<'_>) {
    let (panel, _) = panel.as_chunks_mut::<{ 2 * ROWS * 16 }>();
    let (blocks, _) = row.quants.as_chunks::<Q8_BLOCK>();
    for ((panel, block), &scale) in panel.iter_mut().zip(blocks).zip(row.scales) {
        for half in 0..2 {
            let to = &mut panel[(half * ROWS + at) * 16..][..16];
            // SAFETY: 16 elements on both sides.
            unsafe {
                let vector = load_q8(block.as_ptr().add(16 * half), scale);
                _mm512_storeu_ps(to.as_mut_ptr(), vector);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn pack_mxfp4(panel: &mut [f32], at: usize, blocks: &[u8], scales: &[u8]) {
    decode_row::<ROWS>(panel, at, blocks, scales);
}
