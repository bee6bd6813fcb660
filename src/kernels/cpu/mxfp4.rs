//! MXFP4 rows as the tiers see them.

use crate::kernels::{MXFP4_BLOCK, e8m0};
use std::ops::Range;

/// Rows of one expert.
#[derive(Clone, Copy)]
pub(super) struct Mxfp4Rows<'a> {
    pub(super) blocks: &'a [u8],
    pub(super) scales: &'a [u8],
    pub(super) cols: usize,
}

impl<'a> Mxfp4Rows<'a> {
    /// Blocks and scales of one row.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> (&'a [u8], &'a [u8]) {
        let rows = self.rows(row..row + 1);
        (rows.blocks, rows.scales)
    }

    pub(super) fn rows(&self, rows: Range<usize>) -> Mxfp4Rows<'a> {
        let (bytes, scales) = (self.cols / 2, self.cols / MXFP4_BLOCK);
        Mxfp4Rows {
            blocks: &self.blocks[rows.start * bytes..rows.end * bytes],
            scales: &self.scales[rows.start * scales..rows.end * scales],
            cols: self.cols,
        }
    }
}

/// [`e8m0`] of every exponent: one load, where its cases would be branches in the inner loops.
pub(super) static SCALES: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut s = 0;
    while s < 256 {
        table[s] = e8m0(s as u8);
        s += 1;
    }
    table
};
