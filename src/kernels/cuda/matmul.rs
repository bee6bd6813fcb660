//! Dense products: matmul_few.cu for up to 8 rows; for more, matmul_many.cu, or cuBLAS.

use super::cudarc::driver::{
    CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, PushKernelArg,
};
use super::matmul_many::{TILE_COLUMNS, TILE_ROWS};
use super::{Cuda, CudaError, int};
use crate::kernels::{Q8_BLOCK, elements};
use half::bf16;

/// Up to so many rows of x, the bits of a row of the result do not depend on the others.
pub const INVARIANT_ROWS: usize = 256;

/// Rows of x that matmul_few.cu takes: `TOKENS` in matmul.cuh.
const FEW_ROWS: usize = 8;

/// Rows of a matrix per block of threads: `ROWS` in matmul.cuh.
const ROWS: usize = 16;

/// Most slices of a row: `MOST_SLICES` in matmul.cuh.
const MOST_SLICES: usize = 16;

/// A dense matrix `[rows, cols]` on the device, see [`Dense`](crate::kernels::Dense).
#[derive(Debug)]
pub enum CudaDense<'a> {
    /// As stored in checkpoints.
    Bf16(CudaView<'a, bf16>),
    /// In 8 bits.
    Q8 {
        /// `rows · cols` values, from an address that is a multiple of 16.
        quants: CudaView<'a, i8>,
        /// `rows · cols / 32` scales.
        scales: CudaView<'a, bf16>,
    },
}

/// A weight and a bias to go with it.
#[derive(Debug)]
pub struct Projection<'a> {
    /// `[rows, cols]`.
    pub weight: &'a CudaDense<'a>,
    /// `[rows]`.
    pub bias: Option<&'a CudaView<'a, f32>>,
    /// Output features.
    pub rows: usize,
}

/// Products of one call at most: `Matrices` in matmul.cuh.
const MOST: usize = 3;

/// A [`Projection`] and its result as the kernels take them: addresses, 0 for none.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Matrix {
    pub(super) out: u64,
    pub(super) weight: u64,
    scales: u64,
    pub(super) bias: u64,
    pub(super) sums: u64,
    pub(super) rows: i32,
    pub(super) blocks: i32,
    pub(super) slice: i32,
    pub(super) splits: i32,
}

// SAFETY: plain numbers in C's order, without padding between them.
unsafe impl DeviceRepr for Matrix {}

/// Those of a launch. The ones that are not there have no rows.
pub(super) type Matrices = [Matrix; MOST];

/// Columns of a slice: the order of additions, so it depends on the shape alone. Of a matrix with few rows
/// they are narrow, since there is nothing else to share out.
fn slice(rows: usize, cols: usize) -> usize {
    let wanted = if rows <= 256 { 192 } else { 576 };
    let slices = cols.div_ceil(wanted).min(MOST_SLICES);
    cols.div_ceil(slices).next_multiple_of(64)
}

impl Cuda {
    /// `out[t,o] = bias[o] + Σ_i weight[o,i]·x[t,i]` with `weight: [rows, cols]`, `x: [T, cols]`,
    /// `bias: [rows]`, `out: [T, rows]`.
    ///
    /// Of up to [`INVARIANT_ROWS`] rows of x each is row-invariant. More of them go through cuBLAS with bf16
    /// weights, where the order of summation may change with T. x is taken apart into two bf16, which leaves
    /// 2^-17 of it out, or rounded to one, as the [`Activations`](crate::kernels::Activations) of
    /// these kernels say.
    ///
    /// In 8 bits every weight is exact: quant times scale, not rounded to bf16; rows of x are row-invariant at
    /// any number. Values of x from 2^116 on may overflow in between.
    ///
    /// # Panics
    ///
    /// When `cols` is 0 or (in 8 bits) no multiple of 32, a length is not what the shapes say, or (in
    /// 8 bits) x or the quants do not begin at a multiple of 16 bytes.
    pub fn matmul(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        weight: &CudaDense<'_>,
        x: &CudaView<'_, f32>,
        bias: Option<&CudaView<'_, f32>>,
        rows: usize,
        cols: usize,
    ) -> Result<(), CudaError> {
        self.matmul_each(out, [Projection { weight, bias, rows }], x, cols)
    }

    /// [`Cuda::matmul`] of several weights with the same `x: [T, cols]`; the results `[T, rows]` lie in
    /// `out` one after another, each with the bits it has alone.
    ///
    /// # Panics
    ///
    /// As [`Cuda::matmul`].
    pub fn matmul_each<const N: usize>(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        projections: [Projection<'_>; N],
        x: &CudaView<'_, f32>,
        cols: usize,
    ) -> Result<(), CudaError> {
        const { assert!(N <= MOST) };
        assert!(cols > 0 && x.len().is_multiple_of(cols), "x");
        let t = x.len() / cols;
        projections.iter().for_each(|projection| self.check(projection, x, cols));
        let all = elements([t, projections.iter().map(|p| p.rows).sum()]);
        assert_eq!(out.len(), all, "out");
        let q8 = |p: &Projection<'_>| matches!(p.weight, CudaDense::Q8 { .. });
        let all_q8 = projections.iter().all(q8);
        if all_q8 || !projections.iter().any(q8) {
            return self.products(out, projections, x, cols, all_q8);
        }
        let mut start = 0;
        for projection in projections {
            let n = t * projection.rows;
            let (q8, out) = (q8(&projection), &mut out.slice_mut(start..start + n));
            self.products(out, [projection], x, cols, q8)?;
            start += n;
        }
        Ok(())
    }

    fn check(&self, projection: &Projection<'_>, x: &CudaView<'_, f32>, cols: usize) {
        let Projection { weight, bias, rows } = projection;
        let n = elements([*rows, cols]);
        match weight {
            CudaDense::Bf16(weight) => assert_eq!(weight.len(), n, "weight"),
            CudaDense::Q8 { quants, scales } => {
                assert!(cols.is_multiple_of(Q8_BLOCK), "cols is {cols}, no multiple of 32");
                let lengths = (quants.len(), scales.len());
                assert_eq!(lengths, (n, n / Q8_BLOCK), "quants, scales");
                let stream = self.stream();
                let addresses = [quants.device_ptr(stream).0, x.device_ptr(stream).0];
                assert!(addresses.iter().all(|a| a.is_multiple_of(16)), "quants or x not aligned");
            }
        }
        assert!(bias.is_none_or(|b| b.len() == *rows), "bias");
    }

    /// See [`Cuda::matmul_each`], which checked the arguments. Weights are all in 8 bits or none.
    fn products<const N: usize>(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        projections: [Projection<'_>; N],
        x: &CudaView<'_, f32>,
        cols: usize,
        q8: bool,
    ) -> Result<(), CudaError> {
        // Within the rows of a tile, offsets are 32 bits wide.
        int(TILE_ROWS * (cols + TILE_COLUMNS));
        let t = x.len() / cols;
        let matrices = self.matrices(out, projections, t, cols);
        match t {
            0 => Ok(()),
            1..=FEW_ROWS => self.matmul_few(matrices, x, cols, q8),
            _ if q8 || t <= INVARIANT_ROWS => self.matmul_many(matrices, x, cols, q8),
            _ => self.matmul_blas(matrices, x, cols),
        }
    }

    /// The matrices of a launch, without what depends on the kernel; of their results one is behind the other.
    fn matrices<const N: usize>(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        projections: [Projection<'_>; N],
        t: usize,
        cols: usize,
    ) -> Matrices {
        let stream = self.stream();
        let (mut matrices, mut start) = (Matrices::default(), out.device_ptr_mut(stream).0);
        for (matrix, Projection { weight, bias, rows }) in matrices.iter_mut().zip(projections) {
            let (weight, scales) = match weight {
                CudaDense::Bf16(weight) => (weight.device_ptr(stream).0, 0),
                CudaDense::Q8 { quants, scales } => {
                    (quants.device_ptr(stream).0, scales.device_ptr(stream).0)
                }
            };
            let bias = bias.map_or(0, |bias| bias.device_ptr(stream).0);
            let (out, rows, slice) = (start, int(rows), int(slice(rows, cols)));
            *matrix = Matrix { out, weight, scales, bias, rows, slice, ..Matrix::default() };
            start += (t * rows as usize * size_of::<f32>()) as u64;
        }
        matrices
    }

    /// Up to [`FEW_ROWS`] rows of x, see [`Cuda::products`].
    fn matmul_few(
        &self,
        mut matrices: Matrices,
        x: &CudaView<'_, f32>,
        cols: usize,
        q8: bool,
    ) -> Result<(), CudaError> {
        let (mut blocks, mut warps) = (0, 1);
        for matrix in matrices.iter_mut().filter(|matrix| matrix.rows > 0) {
            let of_matrix = (matrix.rows as usize).div_ceil(ROWS);
            matrix.blocks = int(of_matrix);
            blocks += of_matrix;
            warps = warps.max(cols.div_ceil(matrix.slice as usize));
        }
        let (tokens, i) = (int(x.len() / cols), int(cols));
        let name = match q8 {
            false => self.of_activations("matmul_few_exact", "matmul_few_bf16"),
            true => self.of_activations("matmul_q8_few_exact", "matmul_q8_few_bf16"),
        };
        let kernel = self.kernel("matmul_few", name)?;
        let mut call = kernel.call();
        call.arg(&matrices).arg(x).arg(&tokens).arg(&i);
        // SAFETY: a block is of one of the matrices, and has a warp for each of its slices. Rows behind the
        // last are read as the last and not written, tokens behind the last not at all; columns end at
        // `cols`. The lengths hold the rest, bias is `rows` long or null, and wide loads are aligned.
        unsafe { kernel.launch(call, [blocks, 1, 1], 32 * warps) }
    }
}
