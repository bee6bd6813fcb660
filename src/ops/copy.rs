//! `copy`: values of one tensor on a device into another.

use super::Engine;
use super::cuda::{view, view_mut};
use crate::kernels::cuda::CudaError;
use candle_core::{CpuStorage, CudaStorage, InplaceOp2, Layout, Result, Tensor, bail};

struct Copy<'a> {
    engine: &'a Engine,
}

impl InplaceOp2 for Copy<'_> {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        bail!("expected tensors on a CUDA device, found them in host memory")
    }

    fn cuda_fwd(
        &self,
        to: &mut CudaStorage,
        to_layout: &Layout,
        from: &CudaStorage,
        from_layout: &Layout,
    ) -> Result<()> {
        let (mut to, from) = (view_mut::<f32>(to, to_layout)?, view::<f32>(from, from_layout)?);
        let copied = self.engine.cuda()?.stream().memcpy_dtod(&from, &mut to);
        Ok(copied.map_err(|e| CudaError::new("copy", e))?)
    }
}

/// Copies the f32 values of `from` into `to`, of the same shape, on the stream of `engine`.
pub(crate) fn copy(engine: &Engine, from: &Tensor, to: &Tensor) -> Result<()> {
    assert_eq!(from.dims(), to.dims(), "from, to");
    to.inplace_op2(from, &Copy { engine })
}
