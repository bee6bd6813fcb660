//! `rms_norm`: root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467).

use super::f32_slice;
use crate::kernels::cpu::Cpu;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

struct RmsNorm<'a> {
    cpu: &'a Cpu,
    weight: &'a [f32],
    eps: f32,
}

impl CustomOp1 for RmsNorm<'_> {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(x, layout)?;
        let mut out = vec![0.0; x.len()];
        self.cpu.rms_norm(&mut out, x, self.weight, self.eps);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// `x: [T, H]`, `weight: [H]`, result `[T, H]`.
pub(crate) fn rms_norm(cpu: &Cpu, x: &Tensor, weight: &[f32], eps: f32) -> Result<Tensor> {
    x.apply_op1_no_bwd(&RmsNorm { cpu, weight, eps })
}
