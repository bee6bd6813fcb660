//! Routed experts for many tokens: moe_sort.cu and moe_grouped.cu.

use super::cudarc::driver::{CudaSlice, CudaView, CudaViewMut, PushKernelArg};
use super::tile::{TILE_COLUMNS, TILE_ROWS, TILE_THREADS};
use super::{Cuda, CudaError, THREADS, blocks, int, uint};
use crate::kernels::{ExpertShape, SwigluParams};
use half::bf16;

/// Threads that sort: `SORT_THREADS` in moe_sort.cu.
const SORT_THREADS: usize = 512;

/// (token, expert) pairs by expert.
struct Tiles {
    /// Pairs, those of one expert beside each other.
    order: CudaSlice<u32>,
    /// Four words each: the expert, the first place in `order`, the number of pairs.
    tiles: CudaSlice<u32>,
    /// Tiles there is room for: the real number is known on the device alone.
    count: usize,
}

impl Cuda {
    /// Sorts pairs by expert.
    fn tiles(&self, indices: &CudaView<'_, u32>, experts: usize) -> Result<Tiles, CudaError> {
        // Indices that name no expert are one more.
        let (pairs, groups) = (indices.len(), experts + 1);
        // Whole tiles, and one that is not whole per expert that has pairs.
        let count = pairs / TILE_ROWS + groups.min(pairs);
        let mut order = self.scratch::<u32>(pairs)?;
        let mut offsets = self.scratch::<u32>(groups + 1)?;
        let mut tiles = self.scratch::<u32>(4 * count)?;
        let (n, e, room) = (uint(pairs), uint(groups), uint(count));
        let kernel = self.kernel("moe_sort", "moe_sort")?;
        let mut call = kernel.call();
        call.arg(&mut order).arg(&mut offsets).arg(indices).arg(&n);
        // SAFETY: every pair has one place below `pairs`; a block writes the offset of its group, the last
        // one also the end.
        unsafe { kernel.launch(call, [groups, 1, 1], SORT_THREADS) }?;
        let kernel = self.kernel("moe_sort", "moe_tiles")?;
        let mut call = kernel.call();
        call.arg(&mut tiles).arg(&offsets).arg(&e).arg(&room);
        // SAFETY: reads the offsets of `groups` groups and writes `count` tiles, which is enough for any
        // distribution of `pairs` pairs.
        unsafe { kernel.launch(call, [1, 1, 1], 32) }?;
        Ok(Tiles { order, tiles, count })
    }

    /// See [`Cuda::moe_gate_up`], which checked the arguments. `w`: blocks and scales.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn gate_up_grouped(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        w: [&CudaView<'_, u8>; 2],
        bias: &CudaView<'_, bf16>,
        shape: ExpertShape,
        x: &CudaView<'_, f32>,
        indices: &CudaView<'_, u32>,
        k: usize,
        swiglu: SwigluParams,
    ) -> Result<(), CudaError> {
        let Tiles { order, tiles, count } = self.tiles(indices, shape.experts)?;
        let parts = self.parts(x, shape.cols)?;
        let (e, r, c, j) = (int(shape.experts), int(shape.rows), int(shape.cols), int(k));
        let kernel = self.kernel("moe_grouped", "moe_gate_up_grouped")?;
        let mut call = kernel.call();
        call.arg(out).arg(w[0]).arg(w[1]).arg(bias).arg(&parts).arg(&order).arg(&tiles);
        call.arg(&e).arg(&r).arg(&c).arg(&j).arg(&swiglu.alpha).arg(&swiglu.limit);
        let grid = [shape.rows.div_ceil(TILE_COLUMNS), count, 1];
        // SAFETY: tiles name pairs below T·k, their tokens and experts below E; rows and columns end at
        // the shape's. The lengths hold them, and wide loads are aligned.
        unsafe { kernel.launch(call, grid, TILE_THREADS) }
    }

    /// See [`Cuda::moe_down`], which checked the arguments. `w`: blocks and scales.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn down_grouped(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        w: [&CudaView<'_, u8>; 2],
        bias: &CudaView<'_, bf16>,
        shape: ExpertShape,
        a: &CudaView<'_, f32>,
        indices: &CudaView<'_, u32>,
        weights: &CudaView<'_, f32>,
        k: usize,
    ) -> Result<(), CudaError> {
        let Tiles { order, tiles, count } = self.tiles(indices, shape.experts)?;
        let parts = self.parts(a, shape.cols)?;
        let mut y = self.scratch::<f32>(indices.len() * shape.rows)?;
        let (e, r, c, j) = (int(shape.experts), int(shape.rows), int(shape.cols), int(k));
        let kernel = self.kernel("moe_grouped", "moe_down_grouped")?;
        let mut call = kernel.call();
        call.arg(&mut y).arg(w[0]).arg(w[1]).arg(bias).arg(&parts).arg(&order).arg(&tiles);
        call.arg(&e).arg(&r).arg(&c);
        let grid = [shape.rows.div_ceil(TILE_COLUMNS), count, 1];
        // SAFETY: as above; y has a row for every pair, and every pair is in one tile.
        unsafe { kernel.launch(call, grid, TILE_THREADS) }?;
        let n = out.len() as u64;
        let kernel = self.kernel("moe_sort", "moe_combine")?;
        let mut call = kernel.call();
        call.arg(out).arg(&y).arg(weights).arg(&r).arg(&j).arg(&n);
        // SAFETY: writes the n values of out from the k rows of y each is summed from.
        unsafe { kernel.launch(call, blocks(n as usize), THREADS) }
    }
}
