//! `rope`: rotary position embedding in half-split pairs (Su et al. 2021, arXiv 2104.09864).

use super::f32_slice;
use crate::kernels::cpu::Cpu;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

struct Rope<'a> {
    cpu: &'a Cpu,
    head_dim: usize,
}

impl CustomOp3 for Rope<'_> {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let heads = x_layout.dims()[1] / self.head_dim;
        let mut out = f32_slice(x, x_layout)?.to_vec();
        let (cos, sin) = (f32_slice(cos, cos_layout)?, f32_slice(sin, sin_layout)?);
        self.cpu.rope(&mut out, cos, sin, heads, self.head_dim);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// Rotates `x: [T, heads · head_dim]` by `cos, sin: [T, head_dim / 2]`.
pub(crate) fn rope(
    cpu: &Cpu,
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    head_dim: usize,
) -> Result<Tensor> {
    x.apply_op3_no_bwd(cos, sin, &Rope { cpu, head_dim })
}
