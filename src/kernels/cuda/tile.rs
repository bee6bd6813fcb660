//! What the products of tile.cuh are given: tile.cu.

use super::cudarc::driver::{CudaSlice, CudaView, PushKernelArg};
use super::{Cuda, CudaError, THREADS, blocks, int};

/// Rows of activations in a tile: as in tile.cuh.
pub(super) const TILE_ROWS: usize = 64;

/// Rows of a matrix in a tile: as in tile.cuh.
pub(super) const TILE_COLUMNS: usize = 128;

/// Threads of a tile: as in tile.cuh.
pub(super) const TILE_THREADS: usize = 128;

impl Cuda {
    /// x as two bf16 in the order the tensor cores take it: a word per value.
    pub(super) fn parts(
        &self,
        x: &CudaView<'_, f32>,
        cols: usize,
    ) -> Result<CudaSlice<u32>, CudaError> {
        let mut parts = self.scratch::<u32>(x.len())?;
        let (c, eights) = (int(cols), (x.len() / 8) as u64);
        let kernel = self.kernel("tile", "tile_split")?;
        let mut call = kernel.call();
        call.arg(&mut parts).arg(x).arg(&c).arg(&eights);
        // SAFETY: cols is a multiple of 32 and x is aligned, as the callers have checked; every eight of x
        // become eight words of their row.
        unsafe { kernel.launch(call, blocks(x.len() / 8), THREADS) }?;
        Ok(parts)
    }
}
