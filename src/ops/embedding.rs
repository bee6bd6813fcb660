//! `embedding`: rows of the BF16 embedding table, widened to f32.

use super::u32_slice;
use crate::kernels::cpu::Cpu;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use half::bf16;

struct Embedding<'a> {
    cpu: &'a Cpu,
    table: &'a [bf16],
    hidden: usize,
}

impl CustomOp1 for Embedding<'_> {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, tokens: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let tokens = u32_slice(tokens, layout)?;
        let mut out = vec![0.0; tokens.len() * self.hidden];
        self.cpu.embedding(&mut out, self.table, tokens, self.hidden);
        Ok((CpuStorage::F32(out), (tokens.len(), self.hidden).into()))
    }
}

/// `tokens: [T]` u32, `table: [V, hidden]`, result `[T, hidden]`.
pub(crate) fn embedding(
    cpu: &Cpu,
    tokens: &Tensor,
    table: &[bf16],
    hidden: usize,
) -> Result<Tensor> {
    tokens.apply_op1_no_bwd(&Embedding { cpu, table, hidden })
}
