//! `copy`: values of one tensor on a device into another, or into a new one.

use super::Engine;
use super::cuda::{output, view, view_mut};
use crate::kernels::cuda::CudaError;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, InplaceOp2, Layout, Result, Shape, Tensor, bail,
};

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

impl CustomOp1 for Copy<'_> {
    fn name(&self) -> &'static str {
        "copied"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("expected a tensor on a CUDA device, found one in host memory")
    }

    fn cuda_fwd(&self, from: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (cuda, from_view) = (self.engine.cuda()?, view::<f32>(from, layout)?);
        let copy = output(&from.device, from_view.len(), |to| {
            let copied = cuda.stream().memcpy_dtod(&from_view, to);
            copied.map_err(|e| CudaError::new("copy", e))
        })?;
        Ok((copy, layout.shape().clone()))
    }
}

/// Copies the f32 values of `from` into `to`, of the same shape, on the stream of `engine`.
pub(crate) fn copy(engine: &Engine, from: &Tensor, to: &Tensor) -> Result<()> {
    assert_eq!(from.dims(), to.dims(), "from, to");
    to.inplace_op2(from, &Copy { engine })
}

/// The f32 values of `from` in memory of their own. Of a part of a tensor, candle would copy the whole.
pub(crate) fn copied(engine: &Engine, from: &Tensor) -> Result<Tensor> {
    from.apply_op1_no_bwd(&Copy { engine })
}
