//! `matmul`: a dense projection of f32 activations.

use super::f32_slice;
use crate::kernels::Dense;
use crate::kernels::cpu::Cpu;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

struct Matmul<'a> {
    cpu: &'a Cpu,
    weight: Dense<'a>,
    bias: Option<&'a [f32]>,
    rows: usize,
    cols: usize,
}

impl CustomOp1 for Matmul<'_> {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let tokens = layout.dims()[0];
        let mut out = vec![0.0; tokens * self.rows];
        let x = f32_slice(x, layout)?;
        self.cpu.matmul(&mut out, self.weight, x, self.bias, self.rows, self.cols);
        Ok((CpuStorage::F32(out), (tokens, self.rows).into()))
    }
}

/// `x · weightᵀ + bias`: `x: [T, cols]`, `weight: [rows, cols]`, result `[T, rows]`.
pub(crate) fn matmul(
    cpu: &Cpu,
    x: &Tensor,
    weight: Dense<'_>,
    bias: Option<&[f32]>,
    rows: usize,
    cols: usize,
) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Matmul { cpu, weight, bias, rows, cols })
}
