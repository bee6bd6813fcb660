//! The product of panels; see [`crate::kernels::cpu::panels`].

use super::moe::decode_pair;
use super::vector::{load_q8, sum};
use crate::kernels::Q8_BLOCK;
use crate::kernels::cpu::panels::Tile;
use crate::kernels::cpu::q8::Q8Rows;
use half::bf16;
use std::arch::x86_64::*;

const ROWS: usize = 4;
const PAIRS: usize = ROWS / 2;
const INPUTS: usize = 3;

/// 12 sums, three inputs and one weight at a time are all 16 registers.
pub(in super::super) const TILE: Tile = Tile {
    rows: ROWS,
    inputs: INPUTS,
    lanes: 8,
    product,
    product_f32,
    pack_bf16,
    pack_mxfp4,
    pack_q8,
};

/// A vector of weights times those of all inputs, added to the sums of its row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add(acc: &mut [[__m256; ROWS]; INPUTS], row: usize, w: __m256, inputs: [__m256; INPUTS]) {
    for (acc, input) in acc.iter_mut().zip(inputs) {
        acc[row] = _mm256_fmadd_ps(w, input, acc[row]);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_inputs(x: &[f32; INPUTS * 8]) -> [__m256; INPUTS] {
    // SAFETY: INPUTS vectors of 8 floats.
    std::array::from_fn(|n| unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * n)) })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store(sums: &mut [f32], acc: [[__m256; ROWS]; INPUTS]) {
    for (sums, acc) in sums.chunks_exact_mut(ROWS).zip(acc) {
        for (to, acc) in sums.iter_mut().zip(acc) {
            *to = sum(acc);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn product(sums: &mut [f32], w: &[u32], x: &[f32]) {
    let mut acc = [[_mm256_setzero_ps(); ROWS]; INPUTS];
    let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    for (w, x) in w.as_chunks::<{ PAIRS * 8 }>().0.iter().zip(x.as_chunks().0) {
        let inputs = load_inputs(x);
        for pair in 0..PAIRS {
            // SAFETY: PAIRS vectors of 8 words.
            let words = unsafe { _mm256_loadu_si256(w.as_ptr().add(8 * pair).cast()) };
            let even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words));
            add(&mut acc, 2 * pair, even, inputs);
            let odd = _mm256_castsi256_ps(_mm256_and_si256(words, high));
            add(&mut acc, 2 * pair + 1, odd, inputs);
        }
    }
    store(sums, acc);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn product_f32(sums: &mut [f32], w: &[f32], x: &[f32]) {
    let mut acc = [[_mm256_setzero_ps(); ROWS]; INPUTS];
    for (w, x) in w.as_chunks::<{ ROWS * 8 }>().0.iter().zip(x.as_chunks().0) {
        let inputs = load_inputs(x);
        for row in 0..ROWS {
            // SAFETY: ROWS vectors of 8 floats.
            let w = unsafe { _mm256_loadu_ps(w.as_ptr().add(8 * row)) };
            add(&mut acc, row, w, inputs);
        }
    }
    store(sums, acc);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn pack_bf16(panel: &mut [u32], pair: usize, [even, odd]: [&[bf16]; 2]) {
    let (panel, _) = panel.as_chunks_mut::<{ PAIRS * 8 }>();
    let rows = even.chunks(8).zip(odd.chunks(8));
    for (panel, (even, odd)) in panel.iter_mut().zip(rows) {
        let [even, odd] = [even, odd].map(|row| {
            let mut part = [bf16::ZERO; 8];
            part[..row.len()].copy_from_slice(row);
            // SAFETY: 8 elements.
            _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(part.as_ptr().cast()) })
        });
        let words = _mm256_or_si256(even, _mm256_slli_epi32::<16>(odd));
        let to = &mut panel[8 * pair..][..8];
        // SAFETY: 8 words.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), words) };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn pack_mxfp4(panel: &mut [u32], pair: usize, [even, odd]: [(&[u8], &[u8]); 2]) {
    decode_pair::<PAIRS>(panel, pair, even, odd);
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
