//! `topk_softmax`: which experts each token is routed to, and with which weights.

#[cfg(feature = "cuda")]
use super::cuda::{floats_mut, on_device, output, view};
use super::{Engine, Rows, f32_slice};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

struct TopkSoftmax<'a> {
    engine: &'a Engine,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "on a CPU all are live"))]
    rows: &'a Rows<'a>,
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
        let rows = self.rows.on_device()?;
        let (words, words_layout) = rows.words().storage_and_layout();
        let live = rows.parts(view(on_device(&words)?, words_layout)?).live();
        let routing = output(&logits.device, 2 * tokens * self.k, |routing| {
            let (mut indices, mut bits) = routing.split_at_mut(tokens * self.k);
            let weights = &mut floats_mut(&mut bits);
            cuda.topk_softmax(&mut indices, weights, &values, Some(&live), experts, self.k)
        })?;
        Ok((routing, (2, tokens, self.k).into()))
    }
}

/// The `k` largest of `logits: [T, E]` per row and their softmax, as one u32 tensor `[2, T, k]`:
/// expert indices, then the bits of the f32 weights. One tensor, because a custom op has one result. Rows
/// of padding, which `rows` knows of, go to no expert.
pub(crate) fn topk_softmax(
    engine: &Engine,
    logits: &Tensor,
    rows: &Rows<'_>,
    k: usize,
) -> Result<Tensor> {
    logits.apply_op1_no_bwd(&TopkSoftmax { engine, rows, k })
}
