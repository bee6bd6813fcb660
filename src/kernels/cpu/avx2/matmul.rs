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

/// Inputs that go through the weights without panels, as one tile or two.
pub(in super::super) const FEW: usize = 8;

/// Weight rows as a tile reads them, in blocks of 32: 4 vectors of 8.
pub(super) trait WeightRows: Copy {
    /// The vectors of block `block` of row `row`.
    ///
    /// # Safety
    ///
    /// Needs the tier's instructions; the block lies within the row, the row within the weights.
    unsafe fn load(self, row: usize, block: usize) -> [__m256; 4];

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
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(self, row: usize, block: usize) -> [__m256; 4] {
        // SAFETY: the caller's.
        unsafe {
            let start = self.start.add(row * self.cols + block * 32);
            [0, 8, 16, 24].map(|at| load_bf16(start.add(at)))
        }
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
    unsafe fn load(self, row: usize, block: usize) -> [__m256; 4] {
        // SAFETY: the caller's.
        unsafe {
            let scale = *self.scales.add(row * (self.cols / 32) + block);
            let start = self.quants.add(row * self.cols + block * 32);
            [0, 8, 16, 24].map(|at| load_q8(start.add(at), scale))
        }
    }

    const AHEAD: usize = 2 * TILE;

    #[inline(always)]
    fn prefetch(self, row: usize, block: usize) {
        prefetch::part::<{ TILE * 32 }>(self.quants.wrapping_add(row * self.cols), block);
        prefetch::part::<{ TILE * 2 }>(self.scales.wrapping_add(row * (self.cols / 32)), block);
    }
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
            if R > 1 {
                w.prefetch(row + W::AHEAD, block);
            }
            let x = x.add(block * 32);
            if N == 1 {
                // Row after row, because decoding several at once takes more registers than there are.
                for r in 0..R {
                    for (i, w) in w.load(row + r, block).into_iter().enumerate() {
                        acc[r][0] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x.add(8 * i)), acc[r][0]);
                    }
                }
                continue;
            }
            let mut weights = [[_mm256_setzero_ps(); 4]; R];
            for r in 0..R {
                weights[r] = w.load(row + r, block);
            }
            for i in 0..4 {
                for n in 0..N {
                    let x = _mm256_loadu_ps(x.add(n * cols + 8 * i));
                    for r in 0..R {
                        acc[r][n] = _mm256_fmadd_ps(weights[r][i], x, acc[r][n]);
                    }
                }
            }
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

/// All columns of `out` for the N + M inputs from `x` on, in tiles of R rows: N inputs, and then M.
///
/// # Safety
///
/// `w` has a row for each column and `x` is readable for these inputs, of `cols` elements each.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tiles<W: WeightRows, const R: usize, const N: usize, const M: usize>(
    out: &mut Columns<'_, f32>,
    w: W,
    x: *const f32,
    bias: Option<&[f32]>,
    cols: usize,
) {
    let (columns, mut row) = (out.width(), 0);
    // SAFETY: the caller's rows, of which `row` stays below the number, and inputs.
    unsafe {
        let second = x.add(N * cols);
        while row + R <= columns {
            out.put(0, row, tile::<W, R, N>(w, row, x, cols), bias);
            if M > 0 {
                out.put(N, row, tile::<W, R, M>(w, row, second, cols), bias);
            }
            row += R;
        }
        while row < columns {
            out.put(0, row, tile::<W, 1, N>(w, row, x, cols), bias);
            if M > 0 {
                out.put(N, row, tile::<W, 1, M>(w, row, second, cols), bias);
            }
            row += 1;
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
    let inputs = x.len() / cols;
    assert!(inputs <= FEW && x.len() == inputs * cols, "x");
    let x = x.as_ptr();
    // SAFETY: the caller's rows; this many inputs, asserted above.
    unsafe {
        match inputs {
            0 => {}
            1 => tiles::<W, TILE, 1, 0>(out, w, x, bias, cols),
            2 => tiles::<W, TILE, 2, 0>(out, w, x, bias, cols),
            3 => tiles::<W, TILE, 3, 0>(out, w, x, bias, cols),
            // The sums of three rows and four inputs are twelve of the sixteen registers.
            4 => tiles::<W, 3, 4, 0>(out, w, x, bias, cols),
            5 => tiles::<W, 3, 3, 2>(out, w, x, bias, cols),
            6 => tiles::<W, 3, 3, 3>(out, w, x, bias, cols),
            7 => tiles::<W, 3, 4, 3>(out, w, x, bias, cols),
            _ => tiles::<W, 3, 4, 4>(out, w, x, bias, cols),
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
