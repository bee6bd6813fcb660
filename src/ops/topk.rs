//! `topk_softmax`: which experts each token is routed to, and with which weights.

#[cfg(feature = "cuda")]
use super::cuda::{floats_mut, output, view};
use super::{Engine, f32_slice};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

struct TopkSoftmax<'a> {
    engine: &'a Engine,
    k: usize,
}

impl CustomOp1 for TopkSoftmax<'_> {
    fn name(&self) -> &'static str {
        "topk_softmax"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, experts) = (layout.dims()[0], layout.dims()[1]);
        let logits = f32_slice(logits, layout)?;
        let mut routing = vec![0; 2 * tokens * self.k];
        let (indices, bits) = routing.split_at_mut(tokens * self.k);
        let mut weights = vec![0.0; tokens * self.k];
        self.engine.cpu()?.topk_softmax(indices, &mut weights, logits, experts, self.k);
        for (bits, weight) in bits.iter_mut().zip(weights) {
            *bits = weight.to_bits();
        }
        Ok((CpuStorage::U32(routing), (2, tokens, self.k).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, logits: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (tokens, experts) = (layout.dims()[0], layout.dims()[1]);
        let (cuda, values) = (self.engine.cuda()?, view(logits, layout)?);
        let routing = output(&logits.device, 2 * tokens * self.k, |routing| {
            let (mut indices, mut bits) = routing.split_at_mut(tokens * self.k);
            let weights = &mut floats_mut(&mut bits);
            cuda.topk_softmax(&mut indices, weights, &values, experts, self.k)
        })?;
        Ok((routing, (2, tokens, self.k).into()))
    }
}

/// The `k` largest of `logits: [T, E]` per row and their softmax, as one u32 tensor `[2, T, k]`:
/// expert indices, then the bits of the f32 weights. One tensor, because a custom op has one result.
pub(crate) fn topk_softmax(engine: &Engine, logits: &Tensor, k: usize) -> Result<Tensor> {
    logits.apply_op1_no_bwd(&TopkSoftmax { engine, k })
}
