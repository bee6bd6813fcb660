//! [`Recording`]: launches that the driver keeps and starts again as one, a CUDA graph. Starting 500 of
//! them one by one takes the host longer than the device needs to run them.

use super::cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use super::cudarc::driver::{CudaGraph, CudaStream, DriverError, result};
use super::{Cuda, CudaError};
use std::sync::{Mutex, PoisonError};

/// Rows of a recorded step at most.
pub const MOST_RECORDED_ROWS: usize = 256;

/// Rows of the recording that a step of `rows` is started from: a quarter more at most, so that a growing
/// batch needs few of them. Up to eight, and beyond what is recorded, just as many.
///
/// A step of as many rows that is launched plainly splits its attention as the recorded one does, for the
/// same bits.
pub fn padded_rows(rows: usize) -> usize {
    match rows {
        0..=8 => rows,
        9..=MOST_RECORDED_ROWS => rows.next_multiple_of(rows.next_power_of_two() / 8),
        _ => rows,
    }
}

/// How often a recording is begun anew, when other code spoils it.
const ATTEMPTS: usize = 3;

/// Held while something is recorded, and by what waits for a whole context.
static RECORDING: Mutex<()> = Mutex::new(());

/// Does `work` while nothing in this process is recorded by [`Cuda::record`].
///
/// For all that waits for a whole context (`cuCtxSynchronize`): while any of its streams records, in
/// whatever thread, the driver refuses that and spoils the recording. Among what this crate uses, the
/// first stream of a [`CudaContext`](super::cudarc::driver::CudaContext) does, and so does opening a
/// device; and the end of a cuBLAS handle. `work` must not record.
pub fn between_recordings<T>(work: impl FnOnce() -> T) -> T {
    let _order = RECORDING.lock().unwrap_or_else(PoisonError::into_inner);
    work()
}

/// What a stream was given, to be started again.
pub struct Recording(CudaGraph);

// SAFETY: the driver does not care which thread calls it; `start` takes the recording for itself, so that
// no two threads use it at a time.
unsafe impl Send for Recording {}

impl Cuda {
    /// Records what `work` puts into this stream, instead of running it: launches, copies on the device,
    /// and allocations that `work` also frees. `work` must not wait for the stream, transfer anything, or
    /// open a device.
    ///
    /// Other threads may use the device meanwhile, in streams of their own, in any way but one: whoever
    /// waits for the whole context is refused, and spoils the recording. What this crate does of that kind
    /// waits for the recording to end, and the other way round, see [`between_recordings`]; other code in
    /// the process need not know. So a recording that was spoilt is begun anew, which calls `work` again,
    /// and `None` says that it was spoilt each time: it may be tried again later.
    ///
    /// # Errors
    ///
    /// Of `work`; and when the driver cannot record, or cannot make what was recorded ready to be started.
    pub fn record<E: From<CudaError>>(
        &self,
        mut work: impl FnMut() -> Result<(), E>,
    ) -> Result<Option<Recording>, E> {
        between_recordings(|| {
            for _ in 0..ATTEMPTS {
                if let Some(recording) = self.record_once(&mut work)? {
                    return Ok(Some(recording));
                }
            }
            Ok(None)
        })
    }

    /// `None` when the recording was spoilt.
    fn record_once<E: From<CudaError>>(
        &self,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<Option<Recording>, E> {
        const WHAT: &str = "recording a step";
        let failed = |e: DriverError| CudaError::new(WHAT, e);
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.forget_stored_error();
        self.stream.begin_capture(mode).map_err(failed)?;
        let worked = work();
        // What a drop was refused does not keep the recording from being ended.
        self.forget_stored_error();
        // Always, or the stream would stay as it is.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        match graph {
            // Comes first: what went wrong in `work` went wrong because of it.
            Err(DriverError(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)) => Ok(None),
            graph => {
                // What went wrong in `work` comes before what that led to.
                worked?;
                match graph.map_err(failed)? {
                    Some(graph) => Ok(Some(Recording(graph))),
                    None => {
                        let source = "the driver gave no graph".into();
                        Err(CudaError { what: WHAT.into(), source }.into())
                    }
                }
            }
        }
    }

    /// cudarc keeps an error that a drop met for the next call that can return one, whoever makes it.
    /// Memory of a spoilt recording is refused when it is dropped, which is nobody's concern: it goes with
    /// the recording.
    fn forget_stored_error(&self) {
        let _ = self.stream.context().check_err();
    }
}

impl Recording {
    /// Puts all of it into `stream`, of the same device.
    ///
    /// # Errors
    ///
    /// When the driver refuses.
    ///
    /// # Safety
    ///
    /// All memory that the recorded launches read and write is still allocated, but for what they allocate
    /// themselves, and nothing in another stream uses it meanwhile.
    pub unsafe fn start(&mut self, stream: &CudaStream) -> Result<(), CudaError> {
        let failed = |e| CudaError::new("a recorded step", e);
        stream.context().bind_to_thread().map_err(failed)?;
        // SAFETY: both are alive, and the memory is the caller's.
        unsafe { result::graph::launch(self.0.cu_graph_exec(), stream.cu_stream()) }.map_err(failed)
    }
}
