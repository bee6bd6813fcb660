//! Device memory: how much is free, and how weights get there.

use super::cudarc::driver::result::{device, mem_pool, memcpy_htod_async};
use super::cudarc::driver::{
    CudaContext, CudaEvent, CudaSlice, CudaStream, DevicePtrMut, DeviceRepr, DriverError,
    PinnedHostSlice, sys,
};
use super::moe_pack::Packing;
use super::{Cuda, CudaError, between_recordings};
use crate::kernels::ExpertShape;
use std::sync::Arc;

/// Transfers that go on at the same time, each in a stream of its own and fed by a thread of its own:
/// copying to pinned memory, out of files that may not be in memory yet, is slower than the transfer.
const LANES: usize = 4;

/// Pinned buffers of a lane: one is filled while the other is transferred.
const BUFFERS: usize = 2;

/// Bytes of a pinned buffer.
const PIECE: usize = 16 << 20;

/// Bytes of experts that are staged: a pinned buffer of each lane.
const STAGED: usize = LANES * PIECE;

/// Prepares the device of `stream` for steps that allocate and free on this stream alone.
///
/// Memory that is given back is kept for the next allocation: otherwise the driver returns it to the
/// system whenever the host waits for the device, and every step pays for it anew. And nothing is
/// recorded to order streams against each other: that would cost more than the launches themselves.
///
/// # Errors
///
/// When the driver refuses.
pub fn prepare(stream: &CudaStream) -> Result<(), CudaError> {
    // SAFETY: all memory of this context is allocated, used and freed on one stream; weights come through
    // others, which wait for the allocation and are waited for before the memory is used.
    unsafe { stream.context().disable_event_tracking() };
    let failed = |e| CudaError::new("the memory pool", e);
    let Some(pool) = pool(stream.context()).map_err(failed)? else { return Ok(()) };
    let mut all = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is the device's, and the attribute a 64-bit number.
    unsafe { mem_pool::set_attribute(pool, attribute, (&raw mut all).cast()) }.map_err(failed)
}

/// Bytes that can be allocated on the device of `stream`, and bytes in all.
///
/// # Errors
///
/// When the driver refuses.
pub fn free_memory(stream: &CudaStream) -> Result<(u64, u64), CudaError> {
    let ask = || {
        let context = stream.context();
        stream.synchronize()?;
        if let Some(pool) = pool(context)? {
            // SAFETY: the pool is the device's; only memory that nobody holds is returned.
            unsafe { mem_pool::trim_to(pool, 0) }?;
        }
        let (free, total) = context.mem_get_info()?;
        Ok((free as u64, total as u64))
    };
    ask().map_err(|e: DriverError| CudaError::new("free memory", e))
}

/// What stream-ordered allocations come from, where the device has it.
fn pool(context: &CudaContext) -> Result<Option<sys::CUmemoryPool>, DriverError> {
    context.bind_to_thread()?;
    match context.has_async_alloc() {
        // SAFETY: the device is the context's.
        true => unsafe { device::get_mem_pool(context.cu_device()) }.map(Some),
        false => Ok(None),
    }
}

/// Brings host memory to a device through pinned buffers, without a second copy of it on the host.
pub struct Upload<'a> {
    cuda: &'a Cuda,
    stream: Arc<CudaStream>,
    lanes: Vec<Lane>,
    done: u64,
    /// Of what was brought, bytes that will come once more.
    again: u64,
    /// Bytes of experts that are on the device as stored while they are packed, twice.
    staged: usize,
    progress: Box<dyn FnMut(u64) + 'a>,
}

/// One transfer at a time.
struct Lane {
    stream: Arc<CudaStream>,
    buffers: Vec<(PinnedHostSlice<u8>, Option<CudaEvent>)>,
    next: usize,
}

impl<'a> Upload<'a> {
    /// To the device of `cuda`. `progress` is called with the bytes brought there so far.
    ///
    /// # Errors
    ///
    /// When the system refuses pinned memory.
    pub fn new(cuda: &'a Cuda, progress: impl FnMut(u64) + 'a) -> Result<Upload<'a>, CudaError> {
        let context = cuda.stream().context();
        let lane = |_| {
            let buffer = |_| {
                // SAFETY: bytes are written before they are transferred.
                let pinned = unsafe { context.alloc_pinned::<u8>(PIECE) }?;
                Ok((pinned, None))
            };
            let buffers = (0..BUFFERS).map(buffer).collect::<Result<_, DriverError>>()?;
            Ok(Lane { stream: context.new_stream()?, buffers, next: 0 })
        };
        let lanes = || (0..LANES).map(lane).collect::<Result<_, DriverError>>();
        let lanes = between_recordings(lanes);
        let lanes = lanes.map_err(|e| CudaError::new("pinned memory for the weights", e))?;
        let (stream, progress) = (cuda.stream().clone(), Box::new(progress));
        Ok(Upload { cuda, stream, lanes, done: 0, again: 0, staged: STAGED, progress })
    }

    /// The same with fewer bytes of experts staged at a time, so that tests see several parts.
    #[doc(hidden)]
    #[must_use]
    pub fn with_staged(self, staged: usize) -> Upload<'a> {
        Upload { staged, ..self }
    }

    /// A copy of `source` on the device, there once [`Upload::finish`] has returned.
    ///
    /// # Errors
    ///
    /// When the device has no room for it, or a transfer fails.
    ///
    /// # Panics
    ///
    /// When `source` is empty: no tensor of a model is.
    pub fn copy<T: DeviceRepr>(&mut self, source: &[T]) -> Result<CudaSlice<T>, CudaError> {
        let bytes = size_of_val(source);
        let failed = |e| CudaError::new(format!("{bytes} bytes of weights"), e);
        assert!(bytes > 0, "an empty tensor");
        // SAFETY: a T is plain data for the device (DeviceRepr), so its bytes may be read.
        let source = unsafe { std::slice::from_raw_parts(source.as_ptr().cast::<u8>(), bytes) };
        // SAFETY: all of it is written by the transfers below, which `finish` waits for.
        let mut copy = unsafe { self.stream.alloc::<T>(bytes / size_of::<T>()) }.map_err(failed)?;
        let allocated = self.stream.record_event(None).map_err(failed)?;
        let start = copy.device_ptr_mut(&self.stream).0;
        self.send(start, source, &allocated).map_err(failed)?;
        Ok(copy)
    }

    /// The experts of `blocks` and `scales`, as `Experts::Mxfp4` has them, in the order in which they are
    /// multiplied: `CudaExperts::Packed`. `None` when that cannot hold them; nothing was brought then, and
    /// [`Upload::copy`] takes them as they are.
    ///
    /// # Errors
    ///
    /// As [`Upload::copy`].
    ///
    /// # Panics
    ///
    /// When a length is not what the shape says.
    pub fn packed(
        &mut self,
        blocks: &[u8],
        scales: &[u8],
        shape: ExpertShape,
    ) -> Result<Option<CudaSlice<u8>>, CudaError> {
        let Some(packing) = Packing::of(shape) else { return Ok(None) };
        packing.check(blocks.len(), scales.len());
        let failed = |e| CudaError::new(format!("{} bytes of experts", packing.bytes()), e);
        let (tile_blocks, tile_scales) = packing.tile_bytes();
        let part = (self.staged / (tile_blocks + tile_scales)).clamp(1, packing.tiles());
        let mut packed = self.cuda.scratch::<u8>(packing.bytes())?;
        let mut extreme = self.stream.alloc_zeros::<u32>(1).map_err(failed)?;
        // One is filled while the other is packed. What is packed was waited for, so only an error can free
        // them while something is on its way there, and `send` waits then.
        let stage = |_| -> Result<_, CudaError> {
            let memory = self.cuda.scratch::<u8>(part * (tile_blocks + tile_scales))?;
            Ok((memory, self.stream.record_event(None).map_err(failed)?))
        };
        let mut stages = [stage(0)?, stage(1)?];
        let parts = blocks.chunks(part * tile_blocks).zip(scales.chunks(part * tile_scales));
        for (number, (blocks, scales)) in parts.enumerate() {
            let (stage, free) = &mut stages[number % 2];
            let (to, behind) = (stage.device_ptr_mut(&self.stream).0, blocks.len() as u64);
            self.send(to, blocks, free).map_err(failed)?;
            self.send(to + behind, scales, free).map_err(failed)?;
            for lane in &self.lanes {
                let sent = lane.stream.record_event(None).map_err(failed)?;
                self.stream.wait(&sent).map_err(failed)?;
            }
            let (of_blocks, of_scales) = stage.split_at(blocks.len());
            let first = number * part;
            self.cuda.pack(&mut packed, &mut extreme, &of_blocks, &of_scales, packing, first)?;
            *free = self.stream.record_event(None).map_err(failed)?;
        }
        if self.stream.clone_dtoh(&extreme).map_err(failed)? == [0] {
            return Ok(Some(packed));
        }
        self.again += (blocks.len() + scales.len()) as u64;
        Ok(None)
    }

    /// Starts the transfer of `source` to the address `start`, behind `after`.
    fn send(&mut self, start: u64, source: &[u8], after: &CudaEvent) -> Result<(), DriverError> {
        let lanes = self.lanes.len();
        for (round, part) in source.chunks(lanes * PIECE).enumerate() {
            let start = start + (round * lanes * PIECE) as u64;
            let pieces = part.chunks(PIECE).enumerate();
            let pieces = pieces.map(|(number, piece)| (start + (number * PIECE) as u64, piece));
            let mut work: Vec<_> = self.lanes.iter_mut().zip(pieces).collect();
            let last = work.pop();
            let sent = std::thread::scope(|scope| {
                let send = |(lane, (to, piece)): (&mut Lane, (u64, &[u8]))| {
                    lane.stream.wait(after)?;
                    lane.send(to, piece)
                };
                let others: Vec<_> =
                    work.into_iter().map(|piece| scope.spawn(move || send(piece))).collect();
                last.map_or(Ok(()), send)?;
                others.into_iter().try_for_each(|lane| lane.join().expect("no lane panics"))
            });
            if let Err(error) = sent {
                // The memory is freed on the way out, so nothing may be on its way there.
                self.wait()?;
                return Err(error);
            }
            let again = self.again.min(part.len() as u64);
            self.again -= again;
            self.done += part.len() as u64 - again;
            (self.progress)(self.done);
        }
        // So that small tensors, of one piece, do not all wait for the same lane.
        self.lanes.rotate_left(1);
        Ok(())
    }

    /// Waits until everything is there.
    ///
    /// # Errors
    ///
    /// When a transfer failed.
    pub fn finish(self) -> Result<(), CudaError> {
        self.wait().map_err(|e| CudaError::new("transfer of weights", e))
    }

    fn wait(&self) -> Result<(), DriverError> {
        self.lanes.iter().try_for_each(|lane| lane.stream.synchronize())
    }
}

impl Lane {
    /// Starts the transfer of `piece` to the address `to`, which has room for it.
    fn send(&mut self, to: sys::CUdeviceptr, piece: &[u8]) -> Result<(), DriverError> {
        self.stream.context().bind_to_thread()?;
        let (buffer, sent) = &mut self.buffers[self.next];
        self.next = (self.next + 1) % BUFFERS;
        if let Some(sent) = sent {
            sent.synchronize()?;
        }
        let buffer = &mut buffer.as_mut_slice()?[..piece.len()];
        buffer.copy_from_slice(piece);
        // SAFETY: the buffer is not written before `sent` says that it was transferred, and not freed:
        // dropping the lane waits for its stream first.
        unsafe { memcpy_htod_async(to, buffer, self.stream.cu_stream()) }?;
        *sent = Some(self.stream.record_event(None)?);
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Whoever waits for the device next is told of an error again.
        let _ = self.stream.synchronize();
    }
}
