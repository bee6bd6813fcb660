//! `kv_write`: new keys and values into the pages of the cache.

use super::{f32_slice, u32_slice_mut};
use crate::kernels::cpu::Cpu;
use crate::kernels::{HeadShape, KvFormat};
use candle_core::{CpuStorage, InplaceOp3, Layout, Result, Tensor};

struct KvWrite<'a> {
    cpu: &'a Cpu,
    slots: &'a [u64],
    heads: HeadShape,
    format: KvFormat,
}

impl InplaceOp3 for KvWrite<'_> {
    fn name(&self) -> &'static str {
        "kv_write"
    }

    fn cpu_fwd(
        &self,
        pages: &mut CpuStorage,
        pages_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<()> {
        let (k, v) = (f32_slice(k, k_layout)?, f32_slice(v, v_layout)?);
        let pages = u32_slice_mut(pages, pages_layout)?;
        self.cpu.kv_write(pages, k, v, self.slots, self.heads, self.format);
        Ok(())
    }
}

/// Stores row t of `k, v: [T, K · D]` at `slots[t]` of `pages`, converted to `format`.
pub(crate) fn kv_write(
    cpu: &Cpu,
    pages: &Tensor,
    k: &Tensor,
    v: &Tensor,
    slots: &[u64],
    heads: HeadShape,
    format: KvFormat,
) -> Result<()> {
    pages.inplace_op3(k, v, &KvWrite { cpu, slots, heads, format })
}
