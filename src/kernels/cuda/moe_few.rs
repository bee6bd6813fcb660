//! Packed experts: moe_few.cu for few pairs of each, moe_direct.cu for one or two tokens.

use super::cudarc::driver::{CudaView, CudaViewMut, PushKernelArg};
use super::moe_pack::{MOST_SLABS, SLAB_BYTES, TILE_ROWS};
use super::moe_route::SLAB_COLUMNS;
use super::{Cuda, CudaError, CudaMoe, CudaProjection, THREADS, int, uint};
use crate::kernels::{ExpertShape, SwigluParams, elements};

/// Most pairs of a chunk: `FEW_PAIRS` in moe_few.cu.
const FEW_PAIRS: usize = 8;

/// Bytes that a warp's sums take in a stage: `SUM_BYTES` in moe_few.cu.
const SUM_BYTES: usize = 16 * FEW_PAIRS * 4;

/// Most stages: 227 KB of shared memory have room for 7 tiles of 2880 columns.
const MOST_STAGES: usize = 7;

/// Tiles that a block of moe_direct.cu has in flight: `TILES` there.
const DIRECT_TILES: usize = 2;

/// The slabs of a row, and the launch of moe_few.cu for them.
struct Ring {
    slabs: usize,
    stages: usize,
    threads: usize,
    shared: usize,
}

impl Ring {
    fn new(cols: usize, shared_memory: usize) -> Ring {
        let slabs = cols.div_ceil(SLAB_COLUMNS);
        // A stage has two barriers of 8 bytes.
        let stage = slabs * (SLAB_BYTES + SUM_BYTES) + 16;
        let stages = (shared_memory / stage).clamp(1, MOST_STAGES);
        Ring { slabs, stages, threads: 32 * (slabs + 1), shared: stages * stage }
    }
}

impl Cuda {
    /// See [`Cuda::moe`], which checked the arguments; x, indices and weights are of some of its tokens.
    /// `packed`: gate and up, down.
    pub(super) fn moe_few(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        packed: [&CudaView<'_, u8>; 2],
        moe: &CudaMoe<'_>,
        x: &CudaView<'_, f32>,
        indices: &CudaView<'_, u32>,
        weights: &CudaView<'_, f32>,
    ) -> Result<(), CudaError> {
        let CudaMoe { gate_up, down, k, swiglu, .. } = moe;
        let (up, rows) = (gate_up.shape, down.shape.rows);
        let routed = self.route(indices, up.experts, &[FEW_PAIRS])?;
        let (order, chunks, counts) = (routed.order(), routed.chunks(), routed.counts());
        let slots = uint(routed.room().slots);
        let x = self.slots(x, up.cols, &routed, *k)?;
        let mut act =
            self.scratch::<u16>(self.slot_values(routed.room().slots, down.shape.cols))?;

        let ring = Ring::new(up.cols, self.shared_memory);
        let act_slabs = int(down.shape.cols.div_ceil(SLAB_COLUMNS));
        let (r, s, n) = (int(up.rows), int(ring.slabs), int(ring.stages));
        let kernel = self.kernel(
            "moe_few",
            self.of_activations("moe_gate_up_few_exact", "moe_gate_up_few_bf16"),
        )?;
        let mut call = kernel.call();
        call.arg(&mut act).arg(packed[0]).arg(&gate_up.bias).arg(&x);
        call.arg(&order).arg(&chunks).arg(&counts).arg(&r).arg(&s).arg(&slots).arg(&n);
        call.arg(&act_slabs).arg(&swiglu.alpha).arg(&swiglu.limit);
        let grid = [self.multiprocessors, 1, 1];
        // SAFETY: chunks name experts below E and slots below their number, of which act and x have as
        // many; tiles end at the shape's; the shared memory is what so many stages take.
        unsafe { kernel.launch_with(call, grid, ring.threads, ring.shared) }?;
        drop(x);

        let mut y = self.scratch::<f32>(elements([indices.len(), rows]))?;
        let ring = Ring::new(down.shape.cols, self.shared_memory);
        let (r, s, n) = (int(rows), int(ring.slabs), int(ring.stages));
        let kernel =
            self.kernel("moe_few", self.of_activations("moe_down_few_exact", "moe_down_few_bf16"))?;
        let mut call = kernel.call();
        call.arg(&mut y).arg(packed[1]).arg(&down.bias).arg(&act);
        call.arg(&order).arg(&chunks).arg(&counts).arg(&r).arg(&s).arg(&slots).arg(&n);
        // SAFETY: as above; the order names pairs, of which y has as many rows.
        unsafe { kernel.launch_with(call, grid, ring.threads, ring.shared) }?;
        self.add_experts(out, &y.as_view(), indices, weights, down.shape, *k)
    }

    /// `out[t,:] = Σ_j weights[t,j] · y[t·k+j,:]`, NaN for tokens with an index that names no expert.
    /// `shape.rows` is a multiple of 4, and y from the beginning of an allocation.
    pub(super) fn add_experts(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        y: &CudaView<'_, f32>,
        indices: &CudaView<'_, u32>,
        weights: &CudaView<'_, f32>,
        shape: ExpertShape,
        k: usize,
    ) -> Result<(), CudaError> {
        let (quads, n) = (uint(shape.rows / 4), out.len() / 4);
        assert_eq!(y.len(), elements([indices.len(), shape.rows]), "y");
        let (e, j, all) = (uint(shape.experts), int(k), n as u64);
        let kernel = self.kernel("moe_route", "moe_add")?;
        let mut call = kernel.call();
        call.arg(out).arg(y).arg(indices).arg(weights).arg(&e).arg(&quads).arg(&j).arg(&all);
        // SAFETY: writes the n quads of out from the k rows of y each is summed from.
        unsafe { kernel.launch(call, [n.div_ceil(THREADS), 1, 1], THREADS) }
    }

    /// See [`Cuda::moe_gate_up`], which checked the arguments.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn gate_up_direct(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        packed: &CudaView<'_, u8>,
        w: &CudaProjection<'_>,
        x: &CudaView<'_, f32>,
        indices: &CudaView<'_, u32>,
        k: usize,
        swiglu: SwigluParams,
    ) -> Result<(), CudaError> {
        let ExpertShape { experts, rows, cols } = w.shape;
        let slabs = cols.div_ceil(SLAB_COLUMNS);
        let (e, r, c, s, j) = (uint(experts), int(rows), int(cols), int(slabs), int(k));
        let kernel = self.kernel(
            "moe_direct",
            self.of_activations("moe_gate_up_direct_exact", "moe_gate_up_direct_bf16"),
        )?;
        let mut call = kernel.call();
        call.arg(out).arg(packed).arg(&w.bias).arg(x).arg(indices);
        call.arg(&e).arg(&r).arg(&c).arg(&s).arg(&j).arg(&swiglu.alpha).arg(&swiglu.limit);
        let grid = [indices.len(), (rows / TILE_ROWS).div_ceil(DIRECT_TILES), 1];
        // SAFETY: an expert is read when it is below E, tiles behind the last are read as the last and not
        // written; slabs are at most as many as a block has warps. The lengths hold the rest.
        unsafe { kernel.launch(call, grid, 32 * slabs.min(MOST_SLABS)) }
    }

    /// See [`Cuda::moe_down`], which checked the arguments.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn down_direct(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        packed: &CudaView<'_, u8>,
        w: &CudaProjection<'_>,
        a: &CudaView<'_, f32>,
        indices: &CudaView<'_, u32>,
        weights: &CudaView<'_, f32>,
        k: usize,
    ) -> Result<(), CudaError> {
        let ExpertShape { experts, rows, cols } = w.shape;
        let slabs = cols.div_ceil(SLAB_COLUMNS);
        let (e, r, c, s, j) = (uint(experts), int(rows), int(cols), int(slabs), int(k));
        let kernel = self.kernel(
            "moe_direct",
            self.of_activations("moe_down_direct_exact", "moe_down_direct_bf16"),
        )?;
        let mut call = kernel.call();
        call.arg(out).arg(packed).arg(&w.bias).arg(a).arg(indices).arg(weights);
        call.arg(&e).arg(&r).arg(&c).arg(&s).arg(&j);
        let grid = [indices.len() / k, rows / TILE_ROWS, 1];
        // SAFETY: an expert is read when it is below E; the lengths hold the rest.
        unsafe { kernel.launch(call, grid, 32 * slabs.min(MOST_SLABS)) }
    }
}
