//! `attention`: every row of the flat batch over the pages of its own sequence.

#[cfg(feature = "cuda")]
use super::cuda::{on_device, output, view};
use super::{Engine, Rows, Slice, f32_slice, u32_slice};
use crate::kernels::{HeadShape, KvFormat};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

/// What an attention call needs beside the queries and the pages.
pub(crate) struct AttentionCall<'a> {
    /// Where each row stands, and the page tables.
    pub(crate) rows: &'a Rows<'a>,
    /// Which layer's.
    pub(crate) layer: usize,
    /// Positions seen, the row's own included; `None` for all.
    pub(crate) window: Option<usize>,
    /// One learned sink per query head.
    pub(crate) sinks: Slice<'a, f32>,
    /// Q, K and D.
    pub(crate) heads: HeadShape,
    /// How the layer's pages are stored.
    pub(crate) format: KvFormat,
    /// Multiplies the scores, not the sinks.
    pub(crate) scale: f32,
}

struct Attention<'a> {
    engine: &'a Engine,
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
        let AttentionCall { rows, layer, window, sinks, heads, format, scale } = *self.call;
        let (cpu, sinks, rows) = (self.engine.cpu()?, sinks.host()?, rows.visible(layer, window));
        cpu.attention(&mut out, q, pages, sinks, rows, heads, format, scale);
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        pages: &CudaStorage,
        pages_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let AttentionCall { rows, layer, window, sinks, heads, format, scale } = *self.call;
        let (cuda, sinks) = (self.engine.cuda()?, sinks.cuda()?);
        let (queries, pages) = (view(q, q_layout)?, view(pages, pages_layout)?);
        let rows = rows.on_device()?;
        let (words, layout) = rows.words().storage_and_layout();
        let tables = rows.tables();
        let (all, all_layout) = tables.words().storage_and_layout();
        let of_layer = tables.of_layer(&view(on_device(&all)?, all_layout)?, layer);
        let rows = rows.parts(view(on_device(&words)?, layout)?);
        let rows = rows.visible(of_layer, tables.stride(), window);
        let out = output(&q.device, queries.len(), |out| {
            cuda.attention(out, &queries, &pages, &sinks, &rows, heads, format, scale)
        })?;
        Ok((out, q_layout.shape().clone()))
    }
}

/// `q: [T, Q · D]` over `pages`, result `[T, Q · D]`.
pub(crate) fn attention(
    engine: &Engine,
    q: &Tensor,
    pages: &Tensor,
    call: &AttentionCall<'_>,
) -> Result<Tensor> {
    q.apply_op2_no_bwd(pages, &Attention { engine, call })
}
