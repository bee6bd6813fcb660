//! [`Recording`]: launches that the driver keeps and starts again as one, a CUDA graph. Starting 500 of
//! them one by one takes the host longer than the device needs to run them.

use super::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use super::cudarc::driver::{CudaGraph, CudaStream, DriverError, result};
use super::{Cuda, CudaError};

/// What a stream was given, to be started again.
pub struct Recording(CudaGraph);

// SAFETY: the driver does not care which thread calls it; `start` takes the recording for itself, so that
// no two threads use it at a time.
unsafe impl Send for Recording {}

impl Cuda {
    /// Records what `work` puts into this stream, instead of running it: launches, copies on the device,
    /// and allocations that `work` also frees. `work` must not wait for the stream, nor transfer anything.
    ///
    /// # Errors
    ///
    /// Of `work`; and when the driver cannot record, or refuses something that `work` did.
    pub fn record<E: From<CudaError>>(
        &self,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<Recording, E> {
        const WHAT: &str = "recording a step";
        let failed = |e: DriverError| CudaError::new(WHAT, e);
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(failed)?;
        let worked = work();
        // Always, or the stream would stay as it is. What went wrong in `work` comes first.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        worked?;
        match graph.map_err(failed)? {
            Some(graph) => Ok(Recording(graph)),
            None => {
                let source = "the driver gave no graph".into();
                Err(CudaError { what: WHAT.into(), source }.into())
            }
        }
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
