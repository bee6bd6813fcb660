//! Dense products: matmul.cu and matmul_q8.cu, for many rows of x and bf16 weights cuBLAS.

use super::cudarc::cublas::{result::gemm_ex, sys};
use super::cudarc::driver::{
    CudaSlice, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, PushKernelArg,
};
use super::{Cuda, CudaError, THREADS, blocks, int};
use crate::kernels::{Activations, Q8_BLOCK, elements};
use half::bf16;

/// Up to this many rows of x, a row's dense products and experts have the same bits in any company.
pub const INVARIANT_ROWS: usize = 256;

/// Rows of x whose weights go straight to registers: the columns of an mma.
const FEW: usize = 8;

/// Rows of the weight per block of threads, for few and for more rows of x: as in the sources.
const FEW_ROWS: usize = 16;
const MANY_ROWS: usize = 128;

/// Columns of a slice, whose sum comes before those of other slices are added: `SLICE` blocks of 32.
const SLICE: usize = 320;

/// Warps of a block for few rows: one for each slice, as far as these go. Fewer could not write 128 sums.
const WARPS: [usize; 2] = [4, 16];

/// Threads of a block for more rows, stages in its shared memory, bytes of a row's step of x (64 columns).
const MANY_THREADS: usize = 256;
const STAGES: usize = 3;
const STEP_BYTES: usize = 128;

/// Tokens of a block's tile, and the kernels for them: with one part of x and with two, in bf16 and in 8 bits.
type Names = [[&'static str; 2]; 2];
const TILES: [(usize, Names); 3] = [
    (
        16,
        [["matmul_many_16_1", "matmul_many_16_2"], ["matmul_q8_many_16_1", "matmul_q8_many_16_2"]],
    ),
    (
        32,
        [["matmul_many_32_1", "matmul_many_32_2"], ["matmul_q8_many_32_1", "matmul_q8_many_32_2"]],
    ),
    (
        64,
        [["matmul_many_64_1", "matmul_many_64_2"], ["matmul_q8_many_64_1", "matmul_q8_many_64_2"]],
    ),
];
const OF_FEW: Names = [["matmul_few_1", "matmul_few_2"], ["matmul_q8_few_1", "matmul_q8_few_2"]];
const SOURCES: [&str; 2] = ["matmul", "matmul_q8"];

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
    tiles: i32,
}

// SAFETY: plain numbers in C's order, without padding between them.
unsafe impl DeviceRepr for Matrix {}

impl Cuda {
    /// `out[t,o] = bias[o] + Σ_i weight[o,i]·x[t,i]` with `weight: [rows, cols]`, `x: [T, cols]`,
    /// `bias: [rows]`, `out: [T, rows]`.
    ///
    /// x is taken apart into two bf16, which leaves 2^-17 of it out, or rounded to one, see
    /// [`Activations`]. Row-invariant among calls of up to [`INVARIANT_ROWS`] rows of x, and in 8 bits
    /// among any. More rows with bf16 weights go through cuBLAS, where the order of summation may change
    /// with T.
    ///
    /// In 8 bits every weight is exact: quant times scale, not rounded to bf16. The sum of a block of 32
    /// may overflow before its scale makes it small, from values of x of 2^116 on.
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
    /// `out` one after another. Each has the bits it has alone; of one form, all are one launch.
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
        if all == 0 {
            return Ok(());
        }
        // Within x and within a tile's rows, offsets are 32 bits wide.
        int(MANY_ROWS * (cols + STEP_BYTES));
        let parts = if t > FEW { Some(self.split(x, cols)?) } else { None };
        let is_q8 = |p: &Projection<'_>| matches!(p.weight, CudaDense::Q8 { .. });
        let q8 = projections.iter().filter(|p| is_q8(p)).count();
        if q8 == N || q8 == 0 && t <= INVARIANT_ROWS {
            return self.matmul_own(out, &projections, x, parts.as_ref(), cols, q8 > 0);
        }
        let mut start = 0;
        for projection in &projections {
            let n = t * projection.rows;
            let out = &mut out.slice_mut(start..start + n);
            start += n;
            match (projection.weight, &parts) {
                _ if n == 0 => {}
                (CudaDense::Bf16(weight), Some(parts)) if t > INVARIANT_ROWS => {
                    self.matmul_cublas(out, weight, parts, projection, cols)?
                }
                (_, parts) => {
                    let one = std::slice::from_ref(projection);
                    self.matmul_own(out, one, x, parts.as_ref(), cols, is_q8(projection))?
                }
            }
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

    /// The bf16 parts of x: `[parts, T, cols]`, hi and then lo where activations are exact, with cols padded
    /// to whole blocks of 32.
    fn split(&self, x: &CudaView<'_, f32>, cols: usize) -> Result<CudaSlice<bf16>, CudaError> {
        let n = x.len() / cols * cols.next_multiple_of(Q8_BLOCK);
        let mut parts = self.scratch::<bf16>(self.part_count() * n)?;
        let (c, count, n) = (int(cols), int(self.part_count()), n as u64);
        let kernel = self.kernel("matmul", "matmul_split")?;
        let mut call = kernel.call();
        call.arg(&mut parts).arg(x).arg(&c).arg(&count).arg(&n);
        // SAFETY: each part has the n values of x's padded rows.
        unsafe { kernel.launch(call, blocks(n as usize), THREADS) }?;
        Ok(parts)
    }

    fn part_count(&self) -> usize {
        match self.activations {
            Activations::Exact => 2,
            Activations::Bf16 => 1,
        }
    }

    /// Products by our own kernels, with weights of one form. `parts` of x when there are more than `FEW`
    /// rows of it.
    fn matmul_own(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        projections: &[Projection<'_>],
        x: &CudaView<'_, f32>,
        parts: Option<&CudaSlice<bf16>>,
        cols: usize,
        q8: bool,
    ) -> Result<(), CudaError> {
        let (t, outputs, slices) = (x.len() / cols, out.len(), cols.div_ceil(SLICE));
        let (form, count) = (usize::from(q8), self.part_count() - 1);
        let height = if parts.is_some() { MANY_ROWS } else { FEW_ROWS };
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
            let tiles = int(rows.div_ceil(height));
            *matrix = Matrix { out: start, weight, scales, bias, rows: int(*rows), tiles };
            start += (t * rows * size_of::<f32>()) as u64;
        }
        let tiles: usize = matrices.iter().map(|matrix| matrix.tiles as usize).sum();
        let (tokens, i) = (int(t), int(cols));
        let Some(parts) = parts else {
            let warps = slices.clamp(WARPS[0], WARPS[1]);
            let kernel = self.kernel(SOURCES[form], OF_FEW[form][count])?;
            let mut call = kernel.call();
            call.arg(&matrices).arg(x).arg(&tokens).arg(&i);
            // SAFETY: a block is of one of the matrices. Rows behind the last are read as the last, tokens
            // behind the last not at all, and neither is written; columns end at `cols`. The lengths hold
            // the rest, bias is `rows` long or null, and wide loads are aligned.
            return unsafe { kernel.launch(call, [tiles, 1, 1], 32 * warps) };
        };
        let (width, names) = TILES.iter().find(|tile| t <= tile.0).unwrap_or(&TILES[2]);
        let grid = tiles * t.div_ceil(*width);
        // Too few blocks for the device share out the slices.
        let shares = if grid >= self.multiprocessors {
            1
        } else {
            (2 * self.multiprocessors).div_ceil(grid).min(slices)
        };
        let share = slices.div_ceil(shares);
        let shares = slices.div_ceil(share);
        let mut sums =
            self.scratch::<f32>(if shares > 1 { elements([slices, outputs]) } else { 1 })?;
        let weights = MANY_ROWS * if q8 { STEP_BYTES / 2 } else { STEP_BYTES };
        let shared = STAGES * (weights + self.part_count() * width * STEP_BYTES);
        let (of_share, n) = (int(share), outputs as u64);
        let kernel = self.kernel(SOURCES[form], names[form][count])?;
        let mut call = kernel.call();
        call.arg(&matrices).arg(&mut sums).arg(parts).arg(&tokens).arg(&i).arg(&of_share).arg(&n);
        // SAFETY: as above; parts has the tokens' padded rows, and with more than one share every slice its
        // own outputs in `sums`.
        unsafe { kernel.launch_with(call, [grid, shares, 1], MANY_THREADS, shared) }?;
        if shares == 1 {
            return Ok(());
        }
        let count = int(slices);
        let kernel = self.kernel("matmul", "matmul_add")?;
        let mut call = kernel.call();
        call.arg(&matrices).arg(&sums).arg(&count).arg(&tokens).arg(&n);
        // SAFETY: writes the n outputs, which begin at the first matrix's, from as many sums of each slice.
        unsafe { kernel.launch(call, blocks(outputs), THREADS) }
    }

    /// Products of many rows by cuBLAS. `parts` of x as [`Cuda::split`] leaves them.
    fn matmul_cublas(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        weight: &CudaView<'_, bf16>,
        parts: &CudaSlice<bf16>,
        projection: &Projection<'_>,
        cols: usize,
    ) -> Result<(), CudaError> {
        let Projection { bias, rows, .. } = *projection;
        let (t, padded) = (out.len() / rows, cols.next_multiple_of(Q8_BLOCK));
        if let Some(bias) = bias {
            let (o, n, grid) = (int(rows), out.len() as u64, blocks(out.len()));
            let kernel = self.kernel("matmul", "matmul_bias")?;
            let mut call = kernel.call();
            call.arg(&mut *out).arg(bias).arg(&o).arg(&n);
            // SAFETY: writes the n values of out; bias is `rows` long.
            unsafe { kernel.launch(call, grid, THREADS) }?;
        }
        let part = |i: usize| parts.slice(i * t * padded..(i + 1) * t * padded);
        // cuBLAS counts columns first: weight is [cols, rows], x [cols, T], out [rows, T].
        let (m, n, k, stride) = (int(rows), int(t), int(cols), int(padded));
        let stream = self.stream();
        let (weight, _weight) = weight.device_ptr(stream);
        let (out, _out) = out.device_ptr_mut(stream);
        for i in 0..self.part_count() {
            let part = part(i);
            let (part, _part) = part.device_ptr(stream);
            let (alpha, beta) = (1f32, f32::from(u8::from(i > 0 || bias.is_some())));
            // SAFETY: the three matrices have these shapes, x's rows with padding, which the lengths hold;
            // alpha and beta are f32, as the type of the sums says.
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
                    stride,
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
