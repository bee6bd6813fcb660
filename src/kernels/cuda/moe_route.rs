//! (token, expert) pairs by expert, and their activations in slots: moe_route.cu.

use super::cudarc::driver::{CudaSlice, CudaView, DevicePtr, PushKernelArg};
use super::{Cuda, CudaError, THREADS, int, uint};
use crate::kernels::elements;

/// Threads that sort, and most experts: `ROUTE_THREADS` in moe_route.cu.
const ROUTE_THREADS: usize = 512;

/// Most classes of chunks: `MOST_CLASSES` in moe_route.cu.
const MOST_CLASSES: usize = 5;

/// Columns of a slab of packed weights, which activations are padded to: `SLAB_COLUMNS` in slots.cuh.
pub(super) const SLAB_COLUMNS: usize = 192;

/// What a routing takes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteRoom {
    /// Slots, a multiple of 8.
    pub slots: usize,
    /// Chunks of one class.
    pub chunks: usize,
}

impl RouteRoom {
    /// Room for any routing of `pairs` pairs to `experts` experts, in chunks of up to `most` pairs.
    pub fn new(pairs: usize, experts: usize, most: usize) -> RouteRoom {
        let chosen = experts.min(pairs);
        // An expert's last slots are up to 7 without a pair, and its pairs are shared among no more
        // chunks than if all but one were full.
        let slots = (pairs + 7 * chosen) / 8 * 8;
        RouteRoom { slots, chunks: (pairs + (most - 1) * chosen) / most }
    }
}

/// (token, expert) pairs sorted by expert on the device, in chunks of the experts' products. Of up to 8
/// pairs of one expert, as slots.cuh says; pairs of no expert have no slot.
#[derive(Debug)]
pub struct Routed {
    order: CudaSlice<u32>,
    chunks: CudaSlice<u32>,
    counts: CudaSlice<u32>,
    pairs: usize,
    room: RouteRoom,
}

impl Routed {
    /// The pair of each slot; `u32::MAX - 1` where there is none. An expert's pairs are in their order, its
    /// slots begin at a multiple of 8.
    pub fn order(&self) -> CudaView<'_, u32> {
        self.order.as_view()
    }

    /// Four words each: expert, first slot, pairs, nothing. The `i`-th of class `c` is number
    /// `c · room().chunks + i`, for `i` below the class's count.
    pub fn chunks(&self) -> CudaView<'_, u32> {
        self.chunks.as_view()
    }

    /// Chunks of each class.
    pub fn counts(&self) -> CudaView<'_, u32> {
        self.counts.as_view()
    }

    /// What there is room for: the real numbers are known on the device alone.
    pub fn room(&self) -> RouteRoom {
        self.room
    }
}

impl Cuda {
    /// Sorts the pairs of `indices` by expert, and shares each expert's out evenly among as few chunks as
    /// the last of `limits` allows; a chunk is of the first class whose limit it keeps.
    ///
    /// # Panics
    ///
    /// When there is no pair, no expert or more than 512; unless `limits` are one to five multiples of 8,
    /// ascending, below 2048.
    pub fn route(
        &self,
        indices: &CudaView<'_, u32>,
        experts: usize,
        limits: &[usize],
    ) -> Result<Routed, CudaError> {
        let pairs = indices.len();
        assert!((1..=ROUTE_THREADS).contains(&experts), "{experts} experts");
        assert!(
            pairs > 0 && (1..=MOST_CLASSES).contains(&limits.len()),
            "{pairs} pairs, {limits:?}"
        );
        let fits = |limit: &usize| limit.is_multiple_of(8) && (8..2048).contains(limit);
        assert!(limits.iter().all(fits) && limits.is_sorted(), "{limits:?}");
        let room = RouteRoom::new(pairs, experts, limits[limits.len() - 1]);
        let mut order = self.scratch::<u32>(room.slots)?;
        let mut chunks = self.scratch::<u32>(4 * limits.len() * room.chunks)?;
        let mut counts = self.scratch::<u32>(limits.len())?;
        let in_bytes =
            limits.iter().rev().fold(0, |bytes, limit| (bytes << 8) | (*limit as u64 / 8));
        let (n, e, s, c) = (uint(pairs), uint(experts), uint(room.slots), uint(room.chunks));
        let classes = int(limits.len());
        let kernel = self.kernel("moe_route", "moe_route")?;
        let mut call = kernel.call();
        call.arg(&mut order).arg(&mut chunks).arg(&mut counts).arg(indices);
        call.arg(&n).arg(&e).arg(&s).arg(&c).arg(&classes).arg(&in_bytes);
        // SAFETY: every expert has a thread, and no routing takes more slots or chunks than there is room
        // for.
        unsafe { kernel.launch(call, [1, 1, 1], ROUTE_THREADS) }?;
        Ok(Routed { order, chunks, counts, pairs, room })
    }

    /// x as slots: `[parts][3 · slabs][slots][64]` bf16, where slabs are those of `cols`.
    /// `x: [pairs / divisor, cols]`; pair p is of row `p / divisor`.
    ///
    /// # Panics
    ///
    /// When `cols` is no multiple of 8, x has another length or does not begin at a multiple of 16 bytes.
    pub fn slots(
        &self,
        x: &CudaView<'_, f32>,
        cols: usize,
        routed: &Routed,
        divisor: usize,
    ) -> Result<CudaSlice<u16>, CudaError> {
        assert!(cols > 0 && cols.is_multiple_of(8), "cols is {cols}");
        assert!(divisor > 0 && routed.pairs.is_multiple_of(divisor), "divisor is {divisor}");
        assert_eq!(x.len(), elements([routed.pairs / divisor, cols]), "x");
        assert!(x.device_ptr(self.stream()).0.is_multiple_of(16), "x is not aligned");
        let mut to = self.scratch::<u16>(self.slot_values(routed.room.slots, cols))?;
        let slabs = cols.div_ceil(SLAB_COLUMNS);
        let (slots, d) = (uint(routed.room.slots), uint(divisor));
        let (s, c, parts) = (int(slabs), int(cols), int(self.parts_per_value()));
        let kernel = self.kernel("moe_route", "moe_slots")?;
        let mut call = kernel.call();
        call.arg(&mut to).arg(x).arg(&routed.order);
        call.arg(&slots).arg(&s).arg(&c).arg(&d).arg(&parts);
        let pieces = elements([routed.room.slots, slabs, SLAB_COLUMNS / 8]);
        // SAFETY: a thread writes the 8 columns of its slot that are its own, and reads those of a row of
        // x, which has one for every pair.
        unsafe { kernel.launch(call, [pieces.div_ceil(THREADS), 1, 1], THREADS) }?;
        Ok(to)
    }

    /// Values of `slots` slots of `cols` columns, padding and parts included.
    pub(super) fn slot_values(&self, slots: usize, cols: usize) -> usize {
        elements([self.parts_per_value(), cols.div_ceil(SLAB_COLUMNS), SLAB_COLUMNS, slots])
    }
}
