//! `rms_norm`: root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467), alone and
//! with the residual addition before it.

#[cfg(feature = "cuda")]
use super::cuda::{output, view, view_mut};
use super::{Engine, Slice, f32_slice, f32_slice_mut};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, InplaceOp2, Layout, Result, Shape, Storage, Tensor};
use std::cell::OnceCell;

struct RmsNorm<'a> {
    engine: &'a Engine,
    weight: Slice<'a, f32>,
    eps: f32,
}

impl CustomOp1 for RmsNorm<'_> {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(x, layout)?;
        let mut out = vec![0.0; x.len()];
        self.engine.cpu()?.rms_norm(&mut out, x, self.weight.host()?, self.eps);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (cuda, weight) = (self.engine.cuda()?, self.weight.cuda()?);
        let values = view(x, layout)?;
        let out =
            output(&x.device, values.len(), |out| cuda.rms_norm(out, &values, &weight, self.eps))?;
        Ok((out, layout.shape().clone()))
    }
}

/// `x: [T, H]`, `weight: [H]`, result `[T, H]`.
pub(crate) fn rms_norm(
    engine: &Engine,
    x: &Tensor,
    weight: Slice<'_, f32>,
    eps: f32,
) -> Result<Tensor> {
    x.apply_op1_no_bwd(&RmsNorm { engine, weight, eps })
}

/// An op that changes a tensor returns nothing, so what this one computes beside it is left here.
struct AddRmsNorm<'a> {
    norm: RmsNorm<'a>,
    out: OnceCell<Storage>,
}

impl InplaceOp2 for AddRmsNorm<'_> {
    fn name(&self) -> &'static str {
        "add_rms_norm"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        delta: &CpuStorage,
        delta_layout: &Layout,
    ) -> Result<()> {
        let delta = f32_slice(delta, delta_layout)?;
        for (x, delta) in f32_slice_mut(x, x_layout)?.iter_mut().zip(delta) {
            *x += delta;
        }
        let (out, _) = self.norm.cpu_fwd(x, x_layout)?;
        self.out.get_or_init(|| Storage::Cpu(out));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &mut CudaStorage,
        x_layout: &Layout,
        delta: &CudaStorage,
        delta_layout: &Layout,
    ) -> Result<()> {
        let RmsNorm { engine, weight, eps } = self.norm;
        let (cuda, weight, delta) = (engine.cuda()?, weight.cuda()?, view(delta, delta_layout)?);
        let device = x.device.clone();
        let mut x = view_mut(x, x_layout)?;
        let out = output(&device, delta.len(), |out| {
            cuda.add_rms_norm(&mut x, &delta, out, &weight, eps)
        })?;
        self.out.get_or_init(|| Storage::Cuda(out));
        Ok(())
    }
}

/// `x += delta` in place, then the norm of `x`: `x, delta: [T, H]`, `weight: [H]`, result `[T, H]`.
pub(crate) fn add_rms_norm(
    engine: &Engine,
    x: &Tensor,
    delta: &Tensor,
    weight: Slice<'_, f32>,
    eps: f32,
) -> Result<Tensor> {
    let op = AddRmsNorm { norm: RmsNorm { engine, weight, eps }, out: OnceCell::new() };
    x.inplace_op2(delta, &op)?;
    let out = op.out.into_inner().expect("an op that succeeds leaves its result");
    Ok(Tensor::from((out, x.shape())))
}
