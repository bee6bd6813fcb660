//! `attention`: every row of the flat batch over the pages of its own sequence.

use super::{f32_slice, u32_slice};
use crate::kernels::cpu::Cpu;
use crate::kernels::{AttentionRows, HeadShape, KvFormat};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

/// What an attention call needs beside the queries and the pages.
pub(crate) struct AttentionCall<'a> {
    /// Which positions each row sees.
    pub(crate) rows: AttentionRows<'a>,
    /// One learned sink per query head.
    pub(crate) sinks: &'a [f32],
    /// Q, K and D.
    pub(crate) heads: HeadShape,
    /// How the layer's pages are stored.
    pub(crate) format: KvFormat,
    /// Multiplies the scores, not the sinks.
    pub(crate) scale: f32,
}

struct Attention<'a> {
    cpu: &'a Cpu,
    call: &'a AttentionCall<'a>,
}

impl CustomOp2 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        pages: &CpuStorage,
        pages_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, pages) = (f32_slice(q, q_layout)?, u32_slice(pages, pages_layout)?);
        let mut out = vec![0.0; q.len()];
        let AttentionCall { rows, sinks, heads, format, scale } = *self.call;
        self.cpu.attention(&mut out, q, pages, sinks, rows, heads, format, scale);
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }
}

/// `q: [T, Q · D]` over `pages`, result `[T, Q · D]`.
pub(crate) fn attention(
    cpu: &Cpu,
    q: &Tensor,
    pages: &Tensor,
    call: &AttentionCall<'_>,
) -> Result<Tensor> {
    q.apply_op2_no_bwd(pages, &Attention { cpu, call })
}
