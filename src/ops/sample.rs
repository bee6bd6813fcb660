//! `sample`: a token of each row of logits, drawn where they are. Logits in host memory are
//! `crate::generation`'s business.

use super::Engine;
use super::cuda::{floats_mut, output, view};
use crate::kernels::Draw;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};

struct Sample<'a> {
    engine: &'a Engine,
    draws: &'a [Draw<'a>],
}

impl CustomOp1 for Sample<'_> {
    fn name(&self) -> &'static str {
        "sample"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("expected logits on a CUDA device, found them in host memory")
    }

    fn cuda_fwd(&self, logits: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (cuda, rows) = (self.engine.cuda()?, self.draws.len());
        let values = view(logits, layout)?;
        let drawn = output(&logits.device, 2 * rows, |drawn| {
            let (mut tokens, mut bits) = drawn.split_at_mut(rows);
            let logprobs = &mut floats_mut(&mut bits);
            cuda.sample(&mut tokens, logprobs, &values, self.draws)
        })?;
        Ok((drawn, (2, rows).into()))
    }
}

/// A token of each row of `logits: [R, V]` as `draws` say, as one u32 tensor `[2, R]`: tokens, then the
/// bits of their f32 log-probabilities. No token has the number V or one above it: that stands for none.
pub(crate) fn sample(engine: &Engine, logits: &Tensor, draws: &[Draw<'_>]) -> Result<Tensor> {
    logits.apply_op1_no_bwd(&Sample { engine, draws })
}
