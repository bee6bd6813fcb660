//! `moe_gate_up` and `moe_down`: the two halves of the routed experts.

#[cfg(feature = "cuda")]
use super::cuda::{floats, output, view};
use super::{Engine, ExpertMatrices, Slice, f32_slice, u32_slice};
use crate::kernels::{ExpertShape, SwigluParams};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use half::bf16;

/// One projection of a layer's experts, as stored.
#[derive(Clone, Copy)]
pub(crate) struct ExpertProjection<'a> {
    /// The matrices, `[rows, cols]` each.
    pub(crate) weight: ExpertMatrices<'a>,
    /// `[E, rows]`.
    pub(crate) bias: Slice<'a, bf16>,
    /// E, rows and cols.
    pub(crate) shape: ExpertShape,
}

struct MoeGateUp<'a> {
    engine: &'a Engine,
    experts: ExpertProjection<'a>,
    swiglu: SwigluParams,
}

impl CustomOp2 for MoeGateUp<'_> {
    fn name(&self) -> &'static str {
        "moe_gate_up"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        routing: &CpuStorage,
        routing_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, k) = (routing_layout.dims()[1], routing_layout.dims()[2]);
        let (indices, _) = u32_slice(routing, routing_layout)?.split_at(tokens * k);
        let intermediate = self.experts.shape.rows / 2;
        let mut out = vec![0.0; tokens * k * intermediate];
        let ExpertProjection { weight, bias, shape } = self.experts;
        let x = f32_slice(x, x_layout)?;
        let (cpu, weight, bias) = (self.engine.cpu()?, weight.host()?, bias.host()?);
        cpu.moe_gate_up(&mut out, weight, bias, shape, x, indices, k, self.swiglu);
        Ok((CpuStorage::F32(out), (tokens * k, intermediate).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        routing: &CudaStorage,
        routing_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (tokens, k) = (routing_layout.dims()[1], routing_layout.dims()[2]);
        let (indices, _) = view::<u32>(routing, routing_layout)?.split_at(tokens * k);
        let ExpertProjection { weight, bias, shape } = self.experts;
        let (cuda, weight, bias) = (self.engine.cuda()?, weight.cuda()?, bias.cuda()?);
        let (values, intermediate) = (view(x, x_layout)?, shape.rows / 2);
        let out = output(&x.device, tokens * k * intermediate, |out| {
            cuda.moe_gate_up(out, &weight, &bias, shape, &values, &indices, k, self.swiglu)
        })?;
        Ok((out, (tokens * k, intermediate).into()))
    }
}

/// The activated hidden state of each token's experts: `x: [T, H]`, `routing` as made by
/// [`topk_softmax`](super::topk_softmax), `experts` of shape `[E, 2I, H]`, result `[T · k, I]`.
pub(crate) fn moe_gate_up(
    engine: &Engine,
    x: &Tensor,
    routing: &Tensor,
    experts: ExpertProjection<'_>,
    swiglu: SwigluParams,
) -> Result<Tensor> {
    x.apply_op2_no_bwd(routing, &MoeGateUp { engine, experts, swiglu })
}

struct MoeDown<'a> {
    engine: &'a Engine,
    experts: ExpertProjection<'a>,
}

impl CustomOp2 for MoeDown<'_> {
    fn name(&self) -> &'static str {
        "moe_down"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        routing: &CpuStorage,
        routing_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, k) = (routing_layout.dims()[1], routing_layout.dims()[2]);
        let (indices, bits) = u32_slice(routing, routing_layout)?.split_at(tokens * k);
        let weights: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        let ExpertProjection { weight, bias, shape } = self.experts;
        let mut out = vec![0.0; tokens * shape.rows];
        let a = f32_slice(a, a_layout)?;
        let (cpu, weight, bias) = (self.engine.cpu()?, weight.host()?, bias.host()?);
        cpu.moe_down(&mut out, weight, bias, shape, a, indices, &weights, k);
        Ok((CpuStorage::F32(out), (tokens, shape.rows).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        a_layout: &Layout,
        routing: &CudaStorage,
        routing_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (tokens, k) = (routing_layout.dims()[1], routing_layout.dims()[2]);
        let (indices, bits) = view::<u32>(routing, routing_layout)?.split_at(tokens * k);
        let ExpertProjection { weight, bias, shape } = self.experts;
        let (cuda, weight, bias) = (self.engine.cuda()?, weight.cuda()?, bias.cuda()?);
        let values = view(a, a_layout)?;
        let out = output(&a.device, tokens * shape.rows, |out| {
            cuda.moe_down(out, &weight, &bias, shape, &values, &indices, &floats(&bits), k)
        })?;
        Ok((out, (tokens, shape.rows).into()))
    }
}

/// The routed experts' weighted sum: `a: [T · k, I]`, `experts` of shape `[E, H, I]`, result `[T, H]`.
pub(crate) fn moe_down(
    engine: &Engine,
    a: &Tensor,
    routing: &Tensor,
    experts: ExpertProjection<'_>,
) -> Result<Tensor> {
    a.apply_op2_no_bwd(routing, &MoeDown { engine, experts })
}
