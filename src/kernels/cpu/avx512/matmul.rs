//! The product of weight rows and input rows, for every way weights are stored, and dense layers.
//!
//! A tile is R weight rows times N inputs with one vector of partial sums per (row, input). Each goes
//! through its row from left to right whatever R and N are: that makes the result independent of how
//! many inputs share a call.

use super::vector::{first, load_bf16, load_bf16_part, load_q8, sum};
use crate::kernels::Q8_BLOCK;
use crate::kernels::cpu::prefetch;
use crate::kernels::cpu::q8::Q8Rows;
use crate::kernels::cpu::shares::Columns;
use half::bf16;
use std::arch::x86_64::*;

/// Inputs that a tile holds in registers with several weight rows; more are the panels' business.
pub(in super::super) const FEW: usize = 8;

/// Weight rows as a tile reads them, in vectors of 16: 2 to a block of 32.
pub(super) trait WeightRows: Copy {
    /// Vector I of the 2 of block `block` of 32 elements of row `row`.
    ///
    /// # Safety
    ///
    /// Needs the tier's instructions; the block lies within the row, the row within the weights.
    unsafe fn load<const I: usize>(self, row: usize, block: usize) -> __m512;

    /// The lanes `mask` of a vector that the end of the row cuts off.
    /// Not called for rows of whole blocks.
    ///
    /// # Safety
    ///
    /// As [`load`](Self::load), for these lanes.
    unsafe fn load_part(self, _row: usize, _i: usize, _mask: __mmask16) -> __m512 {
        unreachable!("rows are whole blocks, so no vector is cut off")
    }

    /// How many rows ahead [`prefetch`](Self::prefetch) is called.
    const AHEAD: usize;

    /// Asks for what is read at `block` of the [`TILE`] rows from `row` on, which need not exist.
    fn prefetch(self, row: usize, block: usize);
}

/// Rows of a tile, where there are as many and few enough inputs.
pub(super) const TILE: usize = 4;

/// bf16 rows of `cols` elements.
#[derive(Clone, Copy)]
struct Bf16Rows {
    start: *const bf16,
    cols: usize,
}

impl WeightRows for Bf16Rows {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn load<const I: usize>(self, row: usize, block: usize) -> __m512 {
        // SAFETY: the caller's.
        unsafe { load_bf16(self.start.add(row * self.cols + block * 32 + I * 16)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn load_part(self, row: usize, i: usize, mask: __mmask16) -> __m512 {
        // SAFETY: the caller's.
        unsafe { load_bf16_part(self.start.add(row * self.cols + i * 16), mask) }
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
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn load<const I: usize>(self, row: usize, block: usize) -> __m512 {
        // SAFETY: the caller's.
        unsafe {
            let scale = *self.scales.add(row * (self.cols / 32) + block);
            load_q8(self.quants.add(row * self.cols + block * 32 + I * 16), scale)
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[allow(clippy::needless_range_loop)] // indices say which of the tile
unsafe fn vector<W: WeightRows, const R: usize, const N: usize, const I: usize>(
    mut acc: [[__m512; N]; R],
    w: W,
    row: usize,
    x: *const f32,
    cols: usize,
    block: usize,
) -> [[__m512; N]; R] {
    // SAFETY: the caller's.
    unsafe {
        // The weights stay in registers, not the inputs: a tile has fewer of them.
        let mut weights = [_mm512_setzero_ps(); R];
        for r in 0..R {
            weights[r] = w.load::<I>(row + r, block);
        }
        for n in 0..N {
            let x = _mm512_loadu_ps(x.add(n * cols + block * 32 + I * 16));
            for r in 0..R {
                acc[r][n] = _mm512_fmadd_ps(weights[r], x, acc[r][n]);
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[allow(clippy::needless_range_loop)] // indices say which of the tile
unsafe fn tile<W: WeightRows, const R: usize, const N: usize>(
    w: W,
    row: usize,
    x: *const f32,
    cols: usize,
) -> [[f32; N]; R] {
    let mut acc = [[_mm512_setzero_ps(); N]; R];
    // SAFETY: the caller's rows and inputs; vectors lie within them, parts are masked.
    unsafe {
        for block in 0..cols / 32 {
            if R > 1 {
                w.prefetch(row + W::AHEAD, block);
            }
            acc = vector::<W, R, N, 0>(acc, w, row, x, cols, block);
            acc = vector::<W, R, N, 1>(acc, w, row, x, cols, block);
        }
        for i in cols / 32 * 2..cols.div_ceil(16) {
            let mask = first(cols - i * 16);
            for r in 0..R {
                let w = w.load_part(row + r, i, mask);
                for n in 0..N {
                    let x = _mm512_maskz_loadu_ps(mask, x.add(n * cols + i * 16));
                    acc[r][n] = _mm512_fmadd_ps(w, x, acc[r][n]);
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

/// All columns of `out` for the N inputs from `x` on, in tiles of R rows.
///
/// # Safety
///
/// `w` has a row for each column and `x` is readable for N inputs, of `cols` elements each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn tiles<W: WeightRows, const R: usize, const N: usize>(
    out: &mut Columns<'_, f32>,
    w: W,
    x: *const f32,
    bias: Option<&[f32]>,
    cols: usize,
) {
    let (columns, mut row) = (out.width(), 0);
    // SAFETY: the caller's rows, of which `row` stays below the number, and inputs.
    unsafe {
        while row + R <= columns {
            out.put(0, row, tile::<W, R, N>(w, row, x, cols), bias);
            row += R;
        }
        while row < columns {
            out.put(0, row, tile::<W, 1, N>(w, row, x, cols), bias);
            row += 1;
        }
    }
}

/// All columns of `out` for the few inputs of `x`.
///
/// # Safety
///
/// `w` has a row of `cols` elements for each column.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn product<W: WeightRows>(
    out: &mut Columns<'_, f32>,
    w: W,
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
            1 => tiles::<W, TILE, 1>(out, w, x, bias, cols),
            2 => tiles::<W, TILE, 2>(out, w, x, bias, cols),
            3 => tiles::<W, TILE, 3>(out, w, x, bias, cols),
            4 => tiles::<W, TILE, 4>(out, w, x, bias, cols),
            5 => tiles::<W, TILE, 5>(out, w, x, bias, cols),
            6 => tiles::<W, TILE, 6>(out, w, x, bias, cols),
            // Sums of four rows would not fit the registers.
            7 => tiles::<W, 3, 7>(out, w, x, bias, cols),
            _ => tiles::<W, 3, 8>(out, w, x, bias, cols),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
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

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
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
