//! `rope_kv_write`: rotary position embedding in half-split pairs (Su et al. 2021, arXiv 2104.09864)
//! of new queries and keys, and the keys and values into the pages of the cache.

#[cfg(feature = "cuda")]
use super::cuda::{change, on_device, view, view_mut};
use super::{Engine, Rows, f32_slice_mut, u32_slice_mut};
use crate::kernels::{HeadShape, KvFormat};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

/// What a cache write needs beside the queries, keys and values.
pub(crate) struct CacheWrite<'a> {
    /// The pages of the cache, `[pages, words]`.
    pub(crate) pages: &'a Tensor,
    /// The angles of each row, and where it is stored.
    pub(crate) rows: &'a Rows<'a>,
    /// Which layer's keys and values these are.
    pub(crate) layer: usize,
    /// Q, K and D.
    pub(crate) heads: HeadShape,
    /// How the layer's pages are stored.
    pub(crate) format: KvFormat,
}

struct RopeKvWrite<'a> {
    engine: &'a Engine,
    write: &'a CacheWrite<'a>,
}

impl CacheWrite<'_> {
    /// Elements of the queries, and of the keys or values, of `n` in all.
    fn lengths(&self, n: usize) -> (usize, usize) {
        let HeadShape { q_heads, kv_heads, .. } = self.heads;
        let of_head = n / (q_heads + 2 * kv_heads);
        (q_heads * of_head, kv_heads * of_head)
    }
}

impl InplaceOp1 for RopeKvWrite<'_> {
    fn name(&self) -> &'static str {
        "rope_kv_write"
    }

    fn cpu_fwd(&self, qkv: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CacheWrite { pages, rows, heads, .. } = *self.write;
        let (cpu, qkv) = (self.engine.cpu()?, f32_slice_mut(qkv, layout)?);
        let (queries, keys) = self.write.lengths(qkv.len());
        let (q, kv) = qkv.split_at_mut(queries);
        let (k, v) = kv.split_at_mut(keys);
        let (cos, sin) = rows.angles();
        cpu.rope(q, cos, sin, heads.q_heads, heads.head_dim);
        cpu.rope(k, cos, sin, heads.kv_heads, heads.head_dim);
        pages.inplace_op1(&KvWrite { engine: self.engine, write: self.write, k, v })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, qkv: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let CacheWrite { pages, rows, layer, heads, format } = *self.write;
        let cuda = self.engine.cuda()?;
        let rows = rows.on_device()?;
        let (words, words_layout) = rows.words().storage_and_layout();
        let (slots, slots_layout) = rows.slots().storage_and_layout();
        let slots = view(on_device(&slots)?, slots_layout)?;
        let rows = rows.parts(view(on_device(&words)?, words_layout)?);
        let ((cos, sin), slots) = (rows.angles(), rows.slots(&slots, layer));
        let mut qkv = view_mut(qkv, layout)?;
        let (queries, keys) = self.write.lengths(qkv.len());
        let (mut q, kv) = qkv.split_at_mut(queries);
        let (k, v) = (kv.slice(..keys), kv.slice(keys..));
        change(pages, |pages, layout| {
            let mut pages = view_mut(pages, layout)?;
            cuda.rope_kv_write(&mut q, &k, &v, &cos, &sin, &mut pages, &slots, heads, format)?;
            Ok(())
        })
    }
}

/// The second thing that changes; candle's ops change one tensor each.
struct KvWrite<'a> {
    engine: &'a Engine,
    write: &'a CacheWrite<'a>,
    k: &'a [f32],
    v: &'a [f32],
}

impl InplaceOp1 for KvWrite<'_> {
    fn name(&self) -> &'static str {
        "kv_write"
    }

    fn cpu_fwd(&self, pages: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CacheWrite { rows, layer, heads, format, .. } = *self.write;
        let (pages, slots) = (u32_slice_mut(pages, layout)?, rows.slots(layer));
        self.engine.cpu()?.kv_write(pages, self.k, self.v, slots, heads, format);
        Ok(())
    }
}

/// `qkv` holds the queries of T rows, `[T, Q · D]`, then their keys and their values, `[T, K · D]` each.
/// Rotates queries and keys, stores keys and values in the cache, and returns the queries.
pub(crate) fn rope_kv_write(
    engine: &Engine,
    qkv: &Tensor,
    write: &CacheWrite<'_>,
) -> Result<Tensor> {
    qkv.inplace_op1(&RopeKvWrite { engine, write })?;
    let HeadShape { q_heads, head_dim, .. } = write.heads;
    let (queries, _) = write.lengths(qkv.elem_count());
    qkv.narrow(0, 0, queries)?.reshape((queries / (q_heads * head_dim), q_heads * head_dim))
}
