//! `rope_kv_write`: rotary position embedding in half-split pairs (Su et al. 2021, arXiv 2104.09864)
//! of new queries and keys, and the keys and values into the pages of the cache.

#[cfg(feature = "cuda")]
use super::cuda::{change, on_device, view, view_mut};
use super::{Engine, Rows, f32_slice, f32_slice_mut, u32_slice_mut};
use crate::kernels::{HeadShape, KvFormat};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, InplaceOp1, InplaceOp3, Layout, Result, Tensor};

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

impl InplaceOp3 for RopeKvWrite<'_> {
    fn name(&self) -> &'static str {
        "rope_kv_write"
    }

    fn cpu_fwd(
        &self,
        q: &mut CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<()> {
        let CacheWrite { pages, rows, heads, .. } = *self.write;
        let cpu = self.engine.cpu()?;
        let mut k = f32_slice(k, k_layout)?.to_vec();
        let v = f32_slice(v, v_layout)?;
        let (cos, sin) = rows.angles();
        cpu.rope(f32_slice_mut(q, q_layout)?, cos, sin, heads.q_heads, heads.head_dim);
        cpu.rope(&mut k, cos, sin, heads.kv_heads, heads.head_dim);
        pages.inplace_op1(&KvWrite { engine: self.engine, write: self.write, k: &k, v })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &mut CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<()> {
        let CacheWrite { pages, rows, layer, heads, format } = *self.write;
        let cuda = self.engine.cuda()?;
        let (k, v) = (view(k, k_layout)?, view(v, v_layout)?);
        let rows = rows.on_device()?;
        let (words, layout) = rows.words().storage_and_layout();
        let rows = rows.parts(view(on_device(&words)?, layout)?);
        let ((cos, sin), slots) = (rows.angles(), rows.slots(layer));
        let mut q = view_mut(q, q_layout)?;
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

/// Rotates `q: [T, Q · D]` in place, and stores row t of the rotated `k` and of `v: [T, K · D]` in the
/// cache.
pub(crate) fn rope_kv_write(
    engine: &Engine,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    write: &CacheWrite<'_>,
) -> Result<()> {
    q.inplace_op3(k, v, &RopeKvWrite { engine, write })
}
