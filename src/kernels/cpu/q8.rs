//! Dense weights in 8 bits: their making, and their rows as the tiers see them.

use super::Cpu;
use super::shares::Shares;
use crate::kernels::Q8_BLOCK;
use half::bf16;
use std::ops::Range;

/// Rows of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Q8Rows<'a> {
    pub(super) quants: &'a [i8],
    pub(super) scales: &'a [bf16],
    pub(super) cols: usize,
}

impl<'a> Q8Rows<'a> {
    pub(super) fn rows(&self, rows: Range<usize>) -> Q8Rows<'a> {
        let (quants, scales) = (self.cols, self.cols / Q8_BLOCK);
        Q8Rows {
            quants: &self.quants[rows.start * quants..rows.end * quants],
            scales: &self.scales[rows.start * scales..rows.end * scales],
            cols: self.cols,
        }
    }
}

/// See [`Cpu::q8_encode`], which checked the arguments.
pub(super) fn encode(cpu: &Cpu, quants: &mut [i8], scales: &mut [bf16], w: &[bf16]) {
    let (quants, scales) = (Shares::new(quants), Shares::new(scales));
    cpu.split(w.len() / Q8_BLOCK, 4 * Q8_BLOCK, 1, 4096, |blocks| {
        let elements = blocks.start * Q8_BLOCK..blocks.end * Q8_BLOCK;
        // SAFETY: these blocks are this task's alone.
        let (quants, scales) = unsafe { (quants.part(elements.clone()), scales.part(blocks)) };
        let (from, to) = (w[elements].as_chunks().0, quants.as_chunks_mut().0);
        for ((block, quants), scale) in from.iter().zip(to).zip(scales) {
            *scale = encode_block(quants, block);
        }
    });
}

/// As [`crate::kernels::reference::q8_encode`], without branches, so that a compiler can vectorise it.
#[inline(always)]
fn encode_block(quants: &mut [i8; Q8_BLOCK], block: &[bf16; Q8_BLOCK]) -> bf16 {
    // Magnitudes of bf16 are in the order of their bits.
    let largest = block.iter().fold(0, |largest, w| largest.max(w.to_bits() & 0x7fff));
    let exact = f32::from_bits(u32::from(largest) << 16) / 127.0;
    let scale = (exact.to_bits() + 0xffff) >> 16;
    let divisor = if scale == 0 { 1.0 } else { f32::from_bits(scale << 16) };
    for (quant, w) in quants.iter_mut().zip(block) {
        let w = f32::from_bits(u32::from(w.to_bits()) << 16);
        *quant = (w / divisor).round_ties_even() as i8;
    }
    bf16::from_bits(scale as u16)
}
