//! Dense products of more than 8 rows: matmul_many.cu, or cuBLAS behind its preparations.

use super::cudarc::cublas::{result::gemm_ex, sys};
use super::cudarc::driver::{CudaSlice, CudaView, DevicePtr, PushKernelArg};
use super::matmul::Matrices;
use super::{Cuda, CudaError, THREADS, int};

/// Rows of a matrix in a tile: as in matmul_many.cu.
pub(super) const TILE_ROWS: usize = 128;

/// Rows of x in a tile, and columns that are there at a time: as in matmul_many.cu.
const TILE_TOKENS: usize = 64;
pub(super) const TILE_COLUMNS: usize = 64;

/// Threads of a tile: as in matmul_many.cu.
const TILE_THREADS: usize = 256;

/// Bytes of a tile's stages: `SHARED` in matmul_many.cu, which every device has.
const SHARED: usize = 96 << 10;

/// Tiles that a multiprocessor can have at a time. With fewer, slices are shared out.
const TILES_PER_MULTIPROCESSOR: usize = 2;

/// Most rows of x over which a launch of a thread for each output feature is spread.
const MOST_SPREAD: usize = 256;

/// x in parts for tensor cores: `[part][T][width]` in bf16, zeros behind the columns of x.
struct Parts {
    values: CudaSlice<u16>,
    width: usize,
}

impl Cuda {
    /// Of x in bf16: hi and lo, or hi alone.
    fn parts(&self, x: &CudaView<'_, f32>, cols: usize) -> Result<Parts, CudaError> {
        let (t, width) = (x.len() / cols, cols.next_multiple_of(TILE_COLUMNS));
        let number = self.parts_per_value();
        let mut values = self.scratch::<u16>(number * t * width)?;
        let (tokens, i, eights, two) = (int(t), int(cols), int(width / 8), i32::from(number == 2));
        let kernel = self.kernel("matmul_many", "matmul_split")?;
        let mut call = kernel.call();
        call.arg(&mut values).arg(x).arg(&tokens).arg(&i).arg(&eights).arg(&two);
        let grid = [(width / 8).div_ceil(THREADS), t.min(MOST_SPREAD), 1];
        // SAFETY: writes rows of `width` values, of each part as many as x has rows of `cols`.
        unsafe { kernel.launch(call, grid, THREADS) }?;
        Ok(Parts { values, width })
    }

    /// See [`Cuda::matmul_each`], which checked the arguments; weights are all in 8 bits or none.
    pub(super) fn matmul_many(
        &self,
        mut matrices: Matrices,
        x: &CudaView<'_, f32>,
        cols: usize,
        q8: bool,
    ) -> Result<(), CudaError> {
        let (stream, t) = (self.stream(), x.len() / cols);
        let columns = t.div_ceil(TILE_TOKENS);
        let tiles = |rows: i32| (rows as usize).div_ceil(TILE_ROWS);
        let all: usize = matrices.iter().map(|matrix| tiles(matrix.rows)).sum();
        let split = all * columns < TILES_PER_MULTIPROCESSOR * self.multiprocessors;
        let (mut blocks, mut values) = (0, 0);
        for matrix in matrices.iter_mut().filter(|matrix| matrix.rows > 0) {
            let splits = if split { cols.div_ceil(matrix.slice as usize) } else { 1 };
            let of_matrix = tiles(matrix.rows) * splits;
            (matrix.splits, matrix.blocks) = (int(splits), int(of_matrix));
            blocks += of_matrix;
            if splits > 1 {
                matrix.sums = values as u64;
                values += splits * t * matrix.rows as usize;
            }
        }
        let sums = match values {
            0 => None,
            n => Some(self.scratch::<f32>(n)?),
        };
        if let Some(sums) = &sums {
            let start = sums.device_ptr(stream).0;
            for matrix in &mut matrices {
                matrix.sums = start + matrix.sums * size_of::<f32>() as u64;
            }
        }

        let parts = self.parts(x, cols)?;
        let (tokens, i, eights) = (int(t), int(cols), int(parts.width / 8));
        let name = match q8 {
            false => self.of_activations("matmul_many_exact", "matmul_many_bf16"),
            true => self.of_activations("matmul_q8_many_exact", "matmul_q8_many_bf16"),
        };
        let kernel = self.kernel("matmul_many", name)?;
        let mut call = kernel.call();
        call.arg(&matrices).arg(&parts.values).arg(&tokens).arg(&i).arg(&eights);
        // SAFETY: a block is of one of the matrices, and a split one of its slices, of which `sums` has the
        // [T, rows] it writes. Rows of x and of the weight, and columns, end at the shape's. The lengths hold
        // the rest, bias is `rows` long or null, and copies of 16 bytes are aligned.
        unsafe { kernel.launch_with(call, [columns, blocks, 1], TILE_THREADS, SHARED) }?;
        for matrix in matrices.iter_mut().filter(|matrix| matrix.splits < 2) {
            matrix.rows = 0;
        }
        self.matmul_add(matrices, t)
    }

    /// Adds up what the slices of `matrices` have left, and the bias; of those without slices the bias alone.
    fn matmul_add(&self, matrices: Matrices, t: usize) -> Result<(), CudaError> {
        let most = matrices.iter().map(|matrix| matrix.rows as usize).max().unwrap_or(0);
        let tokens = int(t);
        let kernel = self.kernel("matmul_many", "matmul_add")?;
        let mut call = kernel.call();
        call.arg(&matrices).arg(&tokens);
        let grid = [most.div_ceil(THREADS), t.min(MOST_SPREAD), matrices.len()];
        // SAFETY: writes the [T, rows] of each matrix from as many of each split.
        unsafe { kernel.launch(call, grid, THREADS) }
    }

    /// See [`Cuda::matmul_each`], which checked the arguments; weights are in bf16.
    pub(super) fn matmul_blas(
        &self,
        matrices: Matrices,
        x: &CudaView<'_, f32>,
        cols: usize,
    ) -> Result<(), CudaError> {
        let t = x.len() / cols;
        let parts = self.parts(x, cols)?;
        // Bias first, to which the products are added.
        let mut biased = matrices;
        for matrix in biased.iter_mut().filter(|matrix| matrix.bias == 0) {
            matrix.rows = 0;
        }
        self.matmul_add(biased, t)?;
        let stream = self.stream();
        let (start, _parts) = parts.values.device_ptr(stream);
        // cuBLAS counts columns first: weight is [cols, rows], x [cols, T], out [rows, T].
        let (n, k, width) = (int(t), int(cols), int(parts.width));
        for matrix in matrices.iter().filter(|matrix| matrix.rows > 0) {
            for part in 0..self.parts_per_value() {
                let values = start + (part * t * parts.width * size_of::<u16>()) as u64;
                let add = matrix.bias != 0 || part > 0;
                let (alpha, beta) = (1f32, f32::from(u8::from(add)));
                // SAFETY: the three matrices have these shapes, weight and out without gaps, which the lengths
                // hold; alpha and beta are f32, as the type of the sums says.
                let done = unsafe {
                    gemm_ex(
                        *self.blas.handle(),
                        sys::cublasOperation_t::CUBLAS_OP_T,
                        sys::cublasOperation_t::CUBLAS_OP_N,
                        matrix.rows,
                        n,
                        k,
                        (&raw const alpha).cast(),
                        matrix.weight as *const _,
                        sys::cudaDataType::CUDA_R_16BF,
                        k,
                        values as *const _,
                        sys::cudaDataType::CUDA_R_16BF,
                        width,
                        (&raw const beta).cast(),
                        matrix.out as *mut _,
                        sys::cudaDataType::CUDA_R_32F,
                        matrix.rows,
                        sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                        sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
                    )
                };
                done.map_err(|e| CudaError::new("cublasGemmEx", e))?;
            }
        }
        Ok(())
    }
}
