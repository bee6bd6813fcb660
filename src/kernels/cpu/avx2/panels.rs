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

/// The eight words at `words` without their lower halves. In assembly because the compiler would keep the
/// words of the even row and a mask in registers, and for want of two more spill sums in every step: the
/// product took twice the time.
///
/// # Safety
///
/// Eight words are readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn upper_halves(words: *const u32) -> __m256 {
    static MASK: [u32; 8] = [0xffff_0000; 8];
    let halves;
    // SAFETY: the caller's words and MASK are what is read, and nothing is written.
    unsafe {
        std::arch::asm!(
            "vmovups {halves}, [{words}]",
            "vandps {halves}, {halves}, [{mask}]",
            halves = out(ymm_reg) halves,
            words = in(reg) words,
            mask = in(reg) MASK.as_ptr(),
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    halves
}

#[target_feature(enable = "avx2,fma,f16c")]
fn product(sums: &mut [f32], w: &[u32], x: &[f32]) {
    let mut acc = [[_mm256_setzero_ps(); ROWS]; INPUTS];
    for (w, x) in w.as_chunks::<{ PAIRS * 8 }>().0.iter().zip(x.as_chunks().0) {
        let inputs = load_inputs(x);
        for pair in 0..PAIRS {
            // SAFETY: PAIRS vectors of 8 words.
            let words = unsafe { _mm256_loadu_si256(w.as_ptr().add(8 * pair).cast()) };
            let even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words));
            add(&mut acc, 2 * pair, even, inputs);
            // SAFETY: the same.
            let odd = unsafe { upper_halves(w.as_ptr().add(8 * pair)) };
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
    let (even, even_rest) = even.as_chunks::<8>();
    let (odd, odd_rest) = odd.as_chunks::<8>();
    let rest = [even_rest, odd_rest].map(|rest| {
        let mut part = [bf16::ZERO; 8];
        part[..rest.len()].copy_from_slice(rest);
        part
    });
    let rows = even.iter().zip(odd).chain((!even_rest.is_empty()).then_some((&rest[0], &rest[1])));
    for (panel, (even, odd)) in panel.iter_mut().zip(rows) {
        // SAFETY: 8 elements.
        let [even, odd] = [even, odd]
            .map(|row| _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(row.as_ptr().cast()) }));
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
