//! Packed experts for many pairs each: moe_many.cu.

use super::cudarc::driver::{CudaView, CudaViewMut, PushKernelArg};
use super::moe_pack::{SLAB_BYTES, TILE_ROWS};
use super::moe_route::SLAB_COLUMNS;
use super::{Cuda, CudaError, CudaMoe, int, uint};
use crate::kernels::elements;

/// A kernel of moe_many.cu for each half, for chunks of up to so many pairs.
struct Class {
    limit: usize,
    /// Warpgroups that multiply, and how often 64 rows each: `GROUPS` and `BLOCKS`.
    groups: usize,
    blocks: usize,
    /// Stages of activations and of weights.
    stages: [usize; 2],
    gate_up: &'static str,
    down: &'static str,
}

macro_rules! class {
    ($mode:literal, $limit:literal, $groups:literal, $blocks:literal, $stages:expr) => {
        Class {
            limit: $limit,
            groups: $groups,
            blocks: $blocks,
            stages: $stages,
            gate_up: concat!("moe_gate_up_many_", $mode, "_", $limit),
            down: concat!("moe_down_many_", $mode, "_", $limit),
        }
    };
}

/// As the lines of moe_many.cu. Both modes have the same limits.
static EXACT: [Class; 5] = [
    class!("exact", 32, 3, 2, [8, 4]),
    class!("exact", 64, 3, 2, [6, 3]),
    class!("exact", 96, 3, 1, [6, 2]),
    class!("exact", 128, 2, 2, [4, 3]),
    class!("exact", 160, 3, 1, [4, 2]),
];
static BF16: [Class; 5] = [
    class!("bf16", 32, 3, 2, [8, 5]),
    class!("bf16", 64, 3, 2, [8, 4]),
    class!("bf16", 96, 3, 1, [8, 4]),
    class!("bf16", 128, 2, 2, [8, 3]),
    class!("bf16", 160, 3, 1, [6, 3]),
];

impl Class {
    fn threads(&self) -> usize {
        128 * (self.groups + 1)
    }

    /// Tiles of 16 rows that a block multiplies at a time.
    fn tiles(&self) -> usize {
        4 * self.groups * self.blocks
    }

    /// Bytes of shared memory: stages of 64 columns of all parts, of a slab of each tile, and two barriers
    /// for each. See `Class::SHARED` in moe_many.cu.
    fn shared(&self, parts: usize) -> usize {
        let [columns, weights] = self.stages;
        columns * (parts * self.limit * 128 + 16) + weights * (self.tiles() * SLAB_BYTES + 16)
    }
}

impl Cuda {
    /// Whether this device runs [`Cuda::moe_many`]: it is of capability 9.0, and its kernels were compiled
    /// for 90a. Those of any other list of devices would trap.
    pub(super) fn has_moe_many(&self) -> bool {
        let mut compiled = env!("CUDA_KERNELS_FOR").split(',').map(str::trim);
        self.capability == (9, 0) && compiled.any(|cap| cap == "90a")
    }

    /// As [`Cuda::moe_few`], for many pairs of each expert: the same result but for the order of
    /// additions, which depends on how many pairs an expert has; a pair's bits on its own row and that
    /// number alone. Where [`Cuda::has_moe_many`].
    pub(super) fn moe_many(
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
        let classes = self.of_activations(&EXACT, &BF16);
        let limits = classes.each_ref().map(|class| class.limit);
        let routed = self.route(indices, up.experts, &limits)?;
        let (room, order) = (routed.room(), routed.order());
        let (all_chunks, counts) = (routed.chunks(), routed.counts());
        // The class's chunks and their number, and blocks for pieces of so many rows.
        let of_class = |i: usize, rows: usize| {
            let chunks = all_chunks.slice(4 * i * room.chunks..4 * (i + 1) * room.chunks);
            let pieces = (rows / TILE_ROWS).div_ceil(classes[i].tiles()) * room.chunks;
            (chunks, counts.slice(i..i + 1), [pieces.min(self.multiprocessors), 1, 1])
        };
        let parts = self.parts_per_value();
        let slots = uint(room.slots);
        let x = self.slots(x, up.cols, &routed, *k)?;
        let mut act = self.scratch::<u16>(self.slot_values(room.slots, down.shape.cols))?;

        let [slabs, act_slabs] =
            [up.cols, down.shape.cols].map(|cols| int(cols.div_ceil(SLAB_COLUMNS)));
        let r = int(up.rows);
        for (i, class) in classes.iter().enumerate() {
            let (chunks, count, grid) = of_class(i, up.rows);
            let kernel = self.kernel("moe_many", class.gate_up)?;
            let mut call = kernel.call();
            call.arg(&mut act).arg(packed[0]).arg(&gate_up.bias).arg(&x);
            call.arg(&chunks).arg(&count).arg(&r).arg(&slabs).arg(&slots);
            call.arg(&act_slabs).arg(&swiglu.alpha).arg(&swiglu.limit);
            // SAFETY: chunks name experts below E and slots below their number, of which act and x have as
            // many; tiles end at the shape's; the shared memory is the class's.
            unsafe { kernel.launch_with(call, grid, class.threads(), class.shared(parts)) }?;
        }
        drop(x);

        let mut y = self.scratch::<f32>(elements([indices.len(), rows]))?;
        let r = int(rows);
        for (i, class) in classes.iter().enumerate() {
            let (chunks, count, grid) = of_class(i, rows);
            let kernel = self.kernel("moe_many", class.down)?;
            let mut call = kernel.call();
            call.arg(&mut y).arg(packed[1]).arg(&down.bias).arg(&act);
            call.arg(&order).arg(&chunks).arg(&count).arg(&r).arg(&act_slabs).arg(&slots);
            // SAFETY: as above; the order names pairs, of which y has as many rows.
            unsafe { kernel.launch_with(call, grid, class.threads(), class.shared(parts)) }?;
        }
        self.add_experts(out, &y.as_view(), indices, weights, down.shape, *k)
    }
}
