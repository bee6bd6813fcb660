//! `moe`: the routed experts.

#[cfg(feature = "cuda")]
use super::cuda::{floats, output, view};
use super::{Engine, ExpertMatrices, Slice, f32_slice, u32_slice};
#[cfg(feature = "cuda")]
use crate::kernels::cuda::{CudaMoe, CudaProjection};
use crate::kernels::{ExpertShape, SwigluParams};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use half::bf16;

/// One projection of a layer's experts.
#[derive(Clone, Copy)]
pub(crate) struct ExpertProjection<'a> {
    /// The matrices, `[rows, cols]` each.
    pub(crate) weight: ExpertMatrices<'a>,
    /// `[E, rows]`.
    pub(crate) bias: Slice<'a, bf16>,
    /// E, rows and cols.
    pub(crate) shape: ExpertShape,
}

#[cfg(feature = "cuda")]
impl<'a> ExpertProjection<'a> {
    fn cuda(self) -> Result<CudaProjection<'a>> {
        let (weight, bias) = (self.weight.cuda()?, self.bias.cuda()?);
        Ok(CudaProjection { weight, bias, shape: self.shape })
    }
}

/// What a layer does with the experts of its tokens.
#[derive(Clone, Copy)]
pub(crate) struct Experts<'a> {
    /// `[E, 2I, H]`, gate and up in alternating rows.
    pub(crate) gate_up: ExpertProjection<'a>,
    /// `[E, H, I]`.
    pub(crate) down: ExpertProjection<'a>,
    /// Between them.
    pub(crate) swiglu: SwigluParams,
}

struct Moe<'a> {
    engine: &'a Engine,
    experts: Experts<'a>,
}

impl CustomOp2 for Moe<'_> {
    fn name(&self) -> &'static str {
        "moe"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        routing: &CpuStorage,
        routing_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, k) = (routing_layout.dims()[1], routing_layout.dims()[2]);
        let (indices, bits) = u32_slice(routing, routing_layout)?.split_at(tokens * k);
        let weights: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        let (x, cpu) = (f32_slice(x, x_layout)?, self.engine.cpu()?);
        let Experts { gate_up, down, swiglu } = self.experts;
        let (weight, bias) = (gate_up.weight.host()?, gate_up.bias.host()?);
        let mut a = vec![0.0; tokens * k * down.shape.cols]; // [T · k, I]
        cpu.moe_gate_up(&mut a, weight, bias, gate_up.shape, x, indices, k, swiglu);
        let (weight, bias) = (down.weight.host()?, down.bias.host()?);
        let mut out = vec![0.0; tokens * down.shape.rows];
        cpu.moe_down(&mut out, weight, bias, down.shape, &a, indices, &weights, k);
        Ok((CpuStorage::F32(out), (tokens, down.shape.rows).into()))
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
        let (indices, bits) = view::<u32>(routing, routing_layout)?.split_at(tokens * k);
        let Experts { gate_up, down, swiglu } = self.experts;
        let hidden = down.shape.rows;
        let (gate_up, down, weights) = (gate_up.cuda()?, down.cuda()?, floats(&bits));
        let moe = CudaMoe { gate_up, down, x: view(x, x_layout)?, indices, weights, k, swiglu };
        let cuda = self.engine.cuda()?;
        let out = output(&x.device, tokens * hidden, |out| cuda.moe(out, &moe))?;
        Ok((out, (tokens, hidden).into()))
    }
}

/// The routed experts' weighted sum: `x: [T, H]`, `routing` as made by
/// [`topk_softmax`](super::topk_softmax), result `[T, H]`.
pub(crate) fn moe(
    engine: &Engine,
    x: &Tensor,
    routing: &Tensor,
    experts: Experts<'_>,
) -> Result<Tensor> {
    x.apply_op2_no_bwd(routing, &Moe { engine, experts })
}
