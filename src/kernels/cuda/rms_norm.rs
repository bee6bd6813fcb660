//! Normalisation and the residual stream: rms_norm.cu. Row-invariant.

use super::cudarc::driver::{CudaView, CudaViewMut, PushKernelArg};
use super::{Cuda, CudaError, THREADS, int};

impl Cuda {
    /// `out = x · rsqrt(mean(x²) + eps) · weight` for each row of `weight.len()` values.
    ///
    /// # Panics
    ///
    /// When `weight` is empty or a length is not what the shapes say.
    pub fn rms_norm(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        x: &CudaView<'_, f32>,
        weight: &CudaView<'_, f32>,
        eps: f32,
    ) -> Result<(), CudaError> {
        let width = weight.len();
        assert!(width > 0 && x.len().is_multiple_of(width), "x");
        assert_eq!(out.len(), x.len(), "out");
        let (rows, hidden) = (x.len() / width, int(width));
        let kernel = self.kernel("rms_norm", "rms_norm")?;
        let mut call = kernel.call();
        call.arg(out).arg(x).arg(weight).arg(&hidden).arg(&eps);
        // SAFETY: block t reads the weight and row t and writes row t: the lengths hold them.
        unsafe { kernel.launch(call, [rows, 1, 1], THREADS) }
    }

    /// `x += delta`, then `out = x · rsqrt(mean(x²) + eps) · weight` for each row of `weight.len()`
    /// values: a layer's output joins the residual stream on the way to the next norm.
    ///
    /// # Panics
    ///
    /// When `weight` is empty or a length is not what the shapes say.
    pub fn add_rms_norm(
        &self,
        x: &mut CudaViewMut<'_, f32>,
        delta: &CudaView<'_, f32>,
        out: &mut CudaViewMut<'_, f32>,
        weight: &CudaView<'_, f32>,
        eps: f32,
    ) -> Result<(), CudaError> {
        let width = weight.len();
        assert!(width > 0 && x.len().is_multiple_of(width), "x");
        assert_eq!((delta.len(), out.len()), (x.len(), x.len()), "delta, out");
        let (rows, hidden) = (x.len() / width, int(width));
        let kernel = self.kernel("rms_norm", "add_rms_norm")?;
        let mut call = kernel.call();
        call.arg(x).arg(delta).arg(out).arg(weight).arg(&hidden).arg(&eps);
        // SAFETY: block t reads the weight and rows t, and writes rows t: the lengths hold them.
        unsafe { kernel.launch(call, [rows, 1, 1], THREADS) }
    }
}
