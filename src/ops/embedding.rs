//! `embedding`: rows of the BF16 embedding table, widened to f32.

#[cfg(feature = "cuda")]
use super::cuda::{output, view};
use super::{Engine, Slice, u32_slice};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use half::bf16;

struct Embedding<'a> {
    engine: &'a Engine,
    table: Slice<'a, bf16>,
    hidden: usize,
}

impl CustomOp1 for Embedding<'_> {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, tokens: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let tokens = u32_slice(tokens, layout)?;
        let mut out = vec![0.0; tokens.len() * self.hidden];
        self.engine.cpu()?.embedding(&mut out, self.table.host()?, tokens, self.hidden);
        Ok((CpuStorage::F32(out), (tokens.len(), self.hidden).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, tokens: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (cuda, table) = (self.engine.cuda()?, self.table.cuda()?);
        let ids = view(tokens, layout)?;
        let out = output(self.engine.cuda_device()?, ids.len() * self.hidden, |out| {
            cuda.embedding(out, &table, &ids, self.hidden)
        })?;
        Ok((out, (ids.len(), self.hidden).into()))
    }
}

/// `tokens: [T]` u32, `table: [V, hidden]`, result `[T, hidden]`.
pub(crate) fn embedding(
    engine: &Engine,
    tokens: &Tensor,
    table: Slice<'_, bf16>,
    hidden: usize,
) -> Result<Tensor> {
    tokens.apply_op1_no_bwd(&Embedding { engine, table, hidden })
}
