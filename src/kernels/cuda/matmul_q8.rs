//! Dense products of many rows with weights in 8 bits: matmul_q8.cu.

use super::cudarc::driver::{CudaView, CudaViewMut, PushKernelArg};
use super::tile::{TILE_COLUMNS, TILE_ROWS, TILE_THREADS};
use super::{Cuda, CudaError, THREADS, blocks, int};
use crate::kernels::Q8_BLOCK;
use half::bf16;

/// Blocks of threads per multiprocessor that a product is given where it can be split: with fewer, most of
/// the device would wait for a few that read all weights.
const BLOCKS_PER_MULTIPROCESSOR: usize = 2;

/// Fewest blocks of 32 columns that are worth a split's own sums.
const LEAST: usize = 8;

impl Cuda {
    /// How a product with `tiles` tiles divides the `stride` blocks of a row: the number of splits, and how
    /// many blocks each has. No split is empty.
    fn splits(&self, tiles: usize, stride: usize) -> (usize, usize) {
        let wanted = (BLOCKS_PER_MULTIPROCESSOR * self.multiprocessors / tiles).max(1);
        let share = stride.div_ceil(wanted).max(LEAST);
        (stride.div_ceil(share), share)
    }

    /// See [`Cuda::matmul`], which checked the arguments.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn matmul_q8_many(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        quants: &CudaView<'_, i8>,
        scales: &CudaView<'_, bf16>,
        x: &CudaView<'_, f32>,
        bias: Option<&CudaView<'_, f32>>,
        rows: usize,
        cols: usize,
    ) -> Result<(), CudaError> {
        let t = x.len() / cols;
        let parts = self.parts(x, cols)?;
        let grid = [rows.div_ceil(TILE_COLUMNS), t.div_ceil(TILE_ROWS)];
        let (splits, share) = self.splits(grid[0] * grid[1], cols / Q8_BLOCK);
        let mut sums = match splits {
            1 => None,
            _ => Some(self.scratch::<f32>(splits * out.len())?),
        };
        let (tokens, o, i, of_split, none) = (int(t), int(rows), int(cols), int(share), 0u64);
        let kernel = self.kernel("matmul_q8", "matmul_q8_tile")?;
        let mut call = kernel.call();
        match &mut sums {
            Some(sums) => call.arg(sums),
            None => call.arg(&mut *out),
        };
        call.arg(quants).arg(scales).arg(&parts);
        match bias {
            Some(bias) => call.arg(bias),
            None => call.arg(&none),
        };
        call.arg(&tokens).arg(&o).arg(&i).arg(&of_split);
        // SAFETY: rows of x, rows of the weight and blocks of its columns end at the shape's; a split writes
        // its own [T, rows]. The lengths hold them, bias is `rows` long or null, and wide loads are aligned.
        unsafe { kernel.launch(call, [grid[0], grid[1], splits], TILE_THREADS) }?;
        let Some(sums) = sums else { return Ok(()) };
        let (count, n) = (int(splits), out.len() as u64);
        let kernel = self.kernel("matmul_q8", "matmul_q8_add")?;
        let mut call = kernel.call();
        call.arg(out).arg(&sums).arg(&count).arg(&n);
        // SAFETY: writes the n values of out from as many of each split.
        unsafe { kernel.launch(call, blocks(n as usize), THREADS) }
    }
}
