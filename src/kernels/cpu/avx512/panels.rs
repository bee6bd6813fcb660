//! The product of panels; see [`crate::kernels::cpu::panels`].

use super::moe::decode_pair;
use super::vector::{first, load_q8, sum};
use crate::kernels::Q8_BLOCK;
use crate::kernels::cpu::panels::Tile;
use crate::kernels::cpu::q8::Q8Rows;
use half::bf16;
use std::arch::x86_64::*;

const ROWS: usize = 8;
const PAIRS: usize = ROWS / 2;
const INPUTS: usize = 3;

/// 24 sums, three inputs and two weights at a time are 29 of the 32 registers.
pub(in super::super) const TILE: Tile = Tile {
    rows: ROWS,
    inputs: INPUTS,
    lanes: 16,
    product,
    product_f32,
    pack_bf16,
    pack_mxfp4,
    pack_q8,
};

/// A vector of weights times those of all inputs, added to the sums of its row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn add(acc: &mut [[__m512; ROWS]; INPUTS], row: usize, w: __m512, inputs: [__m512; INPUTS]) {
    for (acc, input) in acc.iter_mut().zip(inputs) {
        acc[row] = _mm512_fmadd_ps(w, input, acc[row]);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn load_inputs(x: &[f32; INPUTS * 16]) -> [__m512; INPUTS] {
    // SAFETY: INPUTS vectors of 16 floats.
    std::array::from_fn(|n| unsafe { _mm512_loadu_ps(x.as_ptr().add(16 * n)) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn store(sums: &mut [f32], acc: [[__m512; ROWS]; INPUTS]) {
    for (sums, acc) in sums.chunks_exact_mut(ROWS).zip(acc) {
        for (to, acc) in sums.iter_mut().zip(acc) {
            *to = sum(acc);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn product(sums: &mut [f32], w: &[u32], x: &[f32]) {
    let mut acc = [[_mm512_setzero_ps(); ROWS]; INPUTS];
    let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    for (w, x) in w.as_chunks::<{ PAIRS * 16 }>().0.iter().zip(x.as_chunks().0) {
        let inputs = load_inputs(x);
        for pair in 0..PAIRS {
            // SAFETY: PAIRS vectors of 16 words.
            let words = unsafe { _mm512_loadu_si512(w.as_ptr().add(16 * pair).cast()) };
            let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words));
            add(&mut acc, 2 * pair, even, inputs);
            let odd = _mm512_castsi512_ps(_mm512_and_si512(words, high));
            add(&mut acc, 2 * pair + 1, odd, inputs);
        }
    }
    store(sums, acc);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn product_f32(sums: &mut [f32], w: &[f32], x: &[f32]) {
    let mut acc = [[_mm512_setzero_ps(); ROWS]; INPUTS];
    for (w, x) in w.as_chunks::<{ ROWS * 16 }>().0.iter().zip(x.as_chunks().0) {
        let inputs = load_inputs(x);
        for row in 0..ROWS {
            // SAFETY: ROWS vectors of 16 floats.
            let w = unsafe { _mm512_loadu_ps(w.as_ptr().add(16 * row)) };
            add(&mut acc, row, w, inputs);
        }
    }
    store(sums, acc);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn pack_bf16(panel: &mut [u32], pair: usize, [even, odd]: [&[bf16]; 2]) {
    let (panel, _) = panel.as_chunks_mut::<{ PAIRS * 16 }>();
    let rows = even.chunks(16).zip(odd.chunks(16));
    for (panel, (even, odd)) in panel.iter_mut().zip(rows) {
        let mask = first(even.len().min(odd.len()));
        // SAFETY: both have the elements of the mask.
        let [even, odd] = [even, odd].map(|row| unsafe {
            _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row.as_ptr().cast()))
        });
        let words = _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd));
        let to = &mut panel[16 * pair..][..16];
        // SAFETY: 16 words.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn pack_mxfp4(panel: &mut [u32], pair: usize, [even, odd]: [(&[u8], &[u8]); 2]) {
    decode_pair::<PAIRS>(panel, pair, even, odd);
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
