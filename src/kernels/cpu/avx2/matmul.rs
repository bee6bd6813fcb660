//! The product of weight rows and input rows, for every way weights are stored, and dense layers.
//!
//! A tile is R weight rows times N inputs with one vector of partial sums per (row, input). Each goes
//! through its row from left to right whatever R and N are: that makes the result independent of how
//! many inputs share a call.

use super::vector::{load_bf16, load_part, load_q8, sum};
use crate::kernels::Q8_BLOCK;
use crate::kernels::cpu::prefetch;
use crate::kernels::cpu::q8::Q8Rows;
use crate::kernels::cpu::shares::Columns;
use half::bf16;
use std::arch::x86_64::*;

/// Inputs that a tile holds in registers with four weight rows; more are the panels' business.
pub(in super::super) const FEW: usize = 3;

/// Weight rows as a tile reads them, in vectors of 8: 4 to a block of 32.
pub(super) trait WeightRows: Copy {
    /// Vector I of the 4 of block `block` of 32 elements of row `row`.
    ///
    /// # Safety
    ///
    /// Needs the tier's instructions; the block lies within the row, the row within the weights.
    unsafe fn load<const I: usize>(self, row: usize, block: usize) -> __m256;

    /// The first `lanes` of a vector that the end of the row cuts off, zero elsewhere.
    /// Not called for rows of whole blocks.
    ///
    /// # Safety
    ///
    /// As [`load`](Self::load), for these lanes.
    unsafe fn load_part(self, _row: usize, _i: usize, _lanes: usize) -> __m256 {
        unreachable!("rows are whole blocks, so no vector is cut off")
    }

    /// How many rows ahead [`prefetch`](Self::prefetch) is called.
    const AHEAD: usize;

    /// Asks for what is read at `block` of the [`TILE`] rows from `row` on, which need not exist.
    fn prefetch(self, row: usize, block: usize);
}

/// Rows of a tile, where there are as many.
pub(super) const TILE: usize = 4;

/// bf16 rows of `cols` elements.
#[derive(Clone, Copy)]
struct Bf16Rows {
    start: *const bf16,
    cols: usize,
}

impl WeightRows for Bf16Rows {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load<const I: usize>(self, row: usize, block: usize) -> __m256 {
        // SAFETY: the caller's.
        unsafe { load_bf16(self.start.add(row * self.cols + block * 32 + I * 8)) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_part(self, row: usize, i: usize, lanes: usize) -> __m256 {
        let mut part = [bf16::ZERO; 8];
        // SAFETY: the caller's; `part` has 8 elements.
        unsafe {
            let start = self.start.add(row * self.cols + i * 8);
            part[..lanes].copy_from_slice(std::slice::from_raw_parts(start, lanes));
            load_bf16(part.as_ptr())
        }
    }

    const AHEAD: usize = TILE;

    #[inline(always)]
    fn prefetch(self, row: usize, block: usize) {
        let start = self.start.wrapping_add(row * self.cols);
        prefetch::part::<{ TILE * 64 }>(start, block);
    }
}

/// Rows in 8 bits.
#[derive(Clone, Copy)]
struct Q8 {
    quants: *const i8,
    scales: *const bf16,
    cols: usize,
}

impl WeightRows for Q8 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load<const I: usize>(self, row: usize, block: usize) -> __m256 {
        // SAFETY: the caller's.
        unsafe {
            let scale = *self.scales.add(row * (self.cols / 32) + block);
            load_q8(self.quants.add(row * self.cols + block * 32 + I * 8), scale)
        }
    }

    const AHEAD: usize = 2 * TILE;

    #[inline(always)]
    fn prefetch(self, row: usize, block: usize) {
        prefetch::part::<{ TILE * 32 }>(self.quants.wrapping_add(row * self.cols), block);
        prefetch::part::<{ TILE * 2 }>(self.scales.wrapping_add(row * (self.cols / 32)), block);
    }
}

/// Adds vector I of block `block` to the partial sums of a tile. I is known to the compiler, because it
/// decides how an MXFP4 block is decoded.
///
/// # Safety
///
/// As [`tile`], for a block within the rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
#[allow(clippy::needless_range_loop)] // indices say which of the tile
unsafe fn vector<W: WeightRows, const R: usize, const N: usize, const I: usize>(
    mut acc: [[__m256; N]; R],
    w: W,
    row: usize,
    x: *const f32,
    cols: usize,
    block: usize,
) -> [[__m256; N]; R] {
    // SAFETY: the caller's.
    unsafe {
        let mut inputs = [_mm256_setzero_ps(); N];
        for n in 0..N {
            inputs[n] = _mm256_loadu_ps(x.add(n * cols + block * 32 + I * 8));
        }
        for r in 0..R {
            let w = w.load::<I>(row + r, block);
            for n in 0..N {
                acc[r][n] = _mm256_fmadd_ps(w, inputs[n], acc[r][n]);
            }
        }
    }
    acc
}

/// R weight rows from `row` on times N inputs from `x` on.
///
/// # Safety
///
/// `w` has these rows, and `x` is readable for N inputs, of `cols` elements each.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
#[allow(clippy::needless_range_loop)] // indices say which of the tile
unsafe fn tile<W: WeightRows, const R: usize, const N: usize>(
    w: W,
    row: usize,
    x: *const f32,
    cols: usize,
) -> [[f32; N]; R] {
    let mut acc = [[_mm256_setzero_ps(); N]; R];
    // SAFETY: the caller's rows and inputs; vectors lie within them, parts are cut off.
    unsafe {
        for block in 0..cols / 32 {
            if R == TILE {
                w.prefetch(row + W::AHEAD, block);
            }
            acc = vector::<W, R, N, 0>(acc, w, row, x, cols, block);
            acc = vector::<W, R, N, 1>(acc, w, row, x, cols, block);
            acc = vector::<W, R, N, 2>(acc, w, row, x, cols, block);
            acc = vector::<W, R, N, 3>(acc, w, row, x, cols, block);
        }
        for i in cols / 32 * 4..cols.div_ceil(8) {
            let lanes = (cols - i * 8).min(8);
            for r in 0..R {
                let w = w.load_part(row + r, i, lanes);
                for n in 0..N {
                    let x = std::slice::from_raw_parts(x.add(n * cols + i * 8), lanes);
                    acc[r][n] = _mm256_fmadd_ps(w, load_part(x), acc[r][n]);
                }
            }
        }
    }
    let mut sums = [[0.0; N]; R];
    for r in 0..R {
        for n in 0..N {
            sums[r][n] = sum(acc[r][n]);
        }
    }
    sums
}

/// R weight rows from `row` on times the few inputs of `x`, to the columns of `out` from `row` on.
///
/// # Safety
///
/// `w` has these rows of `cols` elements.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows<W: WeightRows, const R: usize>(
    out: &mut Columns<'_, f32>,
    w: W,
    row: usize,
    x: &[f32],
    bias: Option<&[f32]>,
    cols: usize,
) {
    let inputs = x.len() / cols;
    assert!(inputs <= FEW && x.len() == inputs * cols, "x");
    let x = x.as_ptr();
    // SAFETY: the caller's rows; this many inputs, asserted above.
    unsafe {
        match inputs {
            0 => {}
            1 => out.put(0, row, tile::<W, R, 1>(w, row, x, cols), bias),
            2 => out.put(0, row, tile::<W, R, 2>(w, row, x, cols), bias),
            _ => out.put(0, row, tile::<W, R, 3>(w, row, x, cols), bias),
        }
    }
}

/// All columns of `out` for the few inputs of `x`.
///
/// # Safety
///
/// `w` has a row of `cols` elements for each column.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn product<W: WeightRows>(
    out: &mut Columns<'_, f32>,
    w: W,
    x: &[f32],
    bias: Option<&[f32]>,
    cols: usize,
) {
    let (columns, mut row) = (out.width(), 0);
    // SAFETY: the caller's rows; `row` stays below their number.
    unsafe {
        while row + TILE <= columns {
            rows::<W, TILE>(out, w, row, x, bias, cols);
            row += TILE;
        }
        while row < columns {
            rows::<W, 1>(out, w, row, x, bias, cols);
            row += 1;
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn matmul(
    out: &mut Columns<'_, f32>,
    w: &[bf16],
    x: &[f32],
    bias: Option<&[f32]>,
    cols: usize,
) {
    assert_eq!(w.len(), out.width() * cols, "w");
    let w = Bf16Rows { start: w.as_ptr(), cols };
    // SAFETY: a row for each column, asserted above.
    unsafe { product(out, w, x, bias, cols) }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn q8_matmul(
    out: &mut Columns<'_, f32>,
    w: Q8Rows<'_>,
    x: &[f32],
    bias: Option<&[f32]>,
) {
    let cols = w.cols;
    assert_eq!(w.quants.len(), out.width() * cols, "quants");
    assert_eq!(w.scales.len(), out.width() * cols / Q8_BLOCK, "scales");
    let w = Q8 { quants: w.quants.as_ptr(), scales: w.scales.as_ptr(), cols };
    // SAFETY: a row for each column, asserted above.
    unsafe { product(out, w, x, bias, cols) }
}
