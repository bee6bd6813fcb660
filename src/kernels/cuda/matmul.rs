//! Dense products: matmul.cu and matmul_q8.cu for few rows; for more, cuBLAS with bf16 weights and
//! matmul_q8.cu with those in 8 bits.

use super::cudarc::cublas::{result::gemm_ex, sys};
use super::cudarc::driver::{
    CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, PushKernelArg,
};
use super::{Cuda, CudaError, THREADS, blocks, int};
use crate::kernels::{Q8_BLOCK, elements};
use half::bf16;

/// Rows of x that the kernels for few take at once: `MATMUL(8)` is the largest.
pub const FEW_ROWS: usize = 8;

/// Rows of the weight per block: `ROWS` in matmul.cuh.
const ROWS: usize = 4;

/// Threads per block: `COLUMN_THREADS` in matmul.cuh.
const COLUMN_THREADS: usize = 128;

/// Most columns that a thread reads at once: `HALF` in matmul_q8.cu.
const MOST_AT_ONCE: usize = 16;

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

/// Products of one launch at most: `Matrices` in matmul.cuh.
const MOST: usize = 3;

/// A [`Projection`] and its result as the kernels take them: addresses, 0 for none.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Matrix {
    out: u64,
    weight: u64,
    scales: u64,
    bias: u64,
    rows: i32,
    blocks: i32,
}

// SAFETY: plain numbers in C's order, without padding between them.
unsafe impl DeviceRepr for Matrix {}

impl Cuda {
    /// `out[t,o] = bias[o] + Σ_i weight[o,i]·x[t,i]` with `weight: [rows, cols]`, `x: [T, cols]`,
    /// `bias: [rows]`, `out: [T, rows]`.
    ///
    /// Of up to 8 rows of x each is row-invariant. More go through tensor cores (those of cuBLAS with bf16
    /// weights), where the order of summation may change with T and x is taken apart into two bf16, which
    /// leaves 2^-17 of it out.
    ///
    /// In 8 bits every weight is exact: quant times scale, not rounded to bf16. Scales from 2^113 on (with
    /// up to 8 rows) and values of x from 2^116 on (with more) may overflow in between.
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
    /// `out` one after another. Of up to 8 rows of x that is one launch, and each has the bits it has alone.
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
        let is_q8 = |p: &Projection<'_>| matches!(p.weight, CudaDense::Q8 { .. });
        let q8 = projections.iter().filter(|p| is_q8(p)).count();
        if t <= FEW_ROWS && (q8 == 0 || q8 == N) {
            return self.matmul_few(out, projections, x, cols, q8 > 0);
        }
        let mut start = 0;
        for projection in projections {
            let Projection { weight, bias, rows } = projection;
            let out = &mut out.slice_mut(start..start + t * rows);
            start += t * rows;
            match weight {
                _ if rows == 0 => Ok(()),
                _ if t <= FEW_ROWS => {
                    let q8 = is_q8(&projection);
                    self.matmul_few(out, [projection], x, cols, q8)
                }
                CudaDense::Bf16(weight) => self.matmul_many(out, weight, x, bias, rows, cols),
                CudaDense::Q8 { quants, scales } => {
                    self.matmul_q8_many(out, quants, scales, x, bias, rows, cols)
                }
            }?;
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

    /// See [`Cuda::matmul_each`], which checked the arguments.
    fn matmul_few<const N: usize>(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        projections: [Projection<'_>; N],
        x: &CudaView<'_, f32>,
        cols: usize,
        q8: bool,
    ) -> Result<(), CudaError> {
        let t = x.len() / cols;
        let (source, name) = match t {
            0 => return Ok(()),
            1 if q8 => ("matmul_q8", "matmul_q8_1"),
            2 if q8 => ("matmul_q8", "matmul_q8_2"),
            3..=4 if q8 => ("matmul_q8", "matmul_q8_4"),
            _ if q8 => ("matmul_q8", "matmul_q8_8"),
            1 => ("matmul", "matmul_1"),
            2 => ("matmul", "matmul_2"),
            3..=4 => ("matmul", "matmul_4"),
            _ => ("matmul", "matmul_8"),
        };
        let kernel = self.kernel(source, name)?;
        // Within x and within the rows of a block, offsets are 32 bits wide.
        int(FEW_ROWS * cols + COLUMN_THREADS * MOST_AT_ONCE);
        let stream = self.stream();
        let (mut matrices, mut start) = ([Matrix::default(); MOST], out.device_ptr_mut(stream).0);
        for (matrix, Projection { weight, bias, rows }) in matrices.iter_mut().zip(projections) {
            let (weight, scales) = match weight {
                CudaDense::Bf16(weight) => (weight.device_ptr(stream).0, 0),
                CudaDense::Q8 { quants, scales } => {
                    (quants.device_ptr(stream).0, scales.device_ptr(stream).0)
                }
            };
            let bias = bias.map_or(0, |bias| bias.device_ptr(stream).0);
            let (out, blocks) = (start, rows.div_ceil(ROWS));
            *matrix = Matrix { out, weight, scales, bias, rows: int(rows), blocks: int(blocks) };
            start += (t * rows * size_of::<f32>()) as u64;
        }
        let blocks: usize = matrices.iter().map(|matrix| matrix.blocks as usize).sum();
        let (tokens, i) = (int(t), int(cols));
        let mut call = kernel.call();
        call.arg(&matrices).arg(x).arg(&tokens).arg(&i);
        // SAFETY: a block is of one of the matrices. Rows and tokens behind the last are read as the last and
        // not written; columns end at `cols`. The lengths hold the rest, bias is `rows` long or null, and
        // wide loads are aligned.
        unsafe { kernel.launch(call, [blocks, 1, 1], COLUMN_THREADS) }
    }

    fn matmul_many(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        weight: &CudaView<'_, bf16>,
        x: &CudaView<'_, f32>,
        bias: Option<&CudaView<'_, f32>>,
        rows: usize,
        cols: usize,
    ) -> Result<(), CudaError> {
        let t = x.len() / cols;
        let mut hi = self.scratch::<bf16>(x.len())?;
        let mut lo = self.scratch::<bf16>(x.len())?;
        let n = x.len() as u64;
        let kernel = self.kernel("matmul", "matmul_split")?;
        let mut call = kernel.call();
        call.arg(&mut hi).arg(&mut lo).arg(x).arg(&n);
        // SAFETY: both parts are as long as x.
        unsafe { kernel.launch(call, blocks(x.len()), THREADS) }?;
        if let Some(bias) = bias {
            let (o, n, grid) = (int(rows), out.len() as u64, blocks(out.len()));
            let kernel = self.kernel("matmul", "matmul_bias")?;
            let mut call = kernel.call();
            call.arg(&mut *out).arg(bias).arg(&o).arg(&n);
            // SAFETY: writes the n values of out; bias is `rows` long.
            unsafe { kernel.launch(call, grid, THREADS) }?;
        }
        // cuBLAS counts columns first: weight is [cols, rows], x [cols, T], out [rows, T].
        let (m, n, k) = (int(rows), int(t), int(cols));
        let stream = self.stream();
        let (weight, _weight) = weight.device_ptr(stream);
        let (out, _out) = out.device_ptr_mut(stream);
        for (part, add) in [(&hi, bias.is_some()), (&lo, true)] {
            let (part, _part) = part.device_ptr(stream);
            let (alpha, beta) = (1f32, f32::from(u8::from(add)));
            // SAFETY: the three matrices have these shapes without gaps, which the lengths hold; alpha and
            // beta are f32, as the type of the sums says.
            let done = unsafe {
                gemm_ex(
                    *self.blas.handle(),
                    sys::cublasOperation_t::CUBLAS_OP_T,
                    sys::cublasOperation_t::CUBLAS_OP_N,
                    m,
                    n,
                    k,
                    (&raw const alpha).cast(),
                    weight as *const _,
                    sys::cudaDataType::CUDA_R_16BF,
                    k,
                    part as *const _,
                    sys::cudaDataType::CUDA_R_16BF,
                    k,
                    (&raw const beta).cast(),
                    out as *mut _,
                    sys::cudaDataType::CUDA_R_32F,
                    m,
                    sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                    sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
                )
            };
            done.map_err(|e| CudaError::new("cublasGemmEx", e))?;
        }
        Ok(())
    }
}
