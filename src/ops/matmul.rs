//! `matmul`: a dense projection of f32 activations.

use super::{Engine, Matrix, Slice, f32_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

struct Matmul<'a> {
    engine: &'a Engine,
    weight: Matrix<'a>,
    bias: Option<Slice<'a, f32>>,
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
        let bias = self.bias.map(Slice::host).transpose()?;
        let weight = self.weight.host()?;
        self.engine.cpu()?.matmul(&mut out, weight, x, bias, self.rows, self.cols);
        Ok((CpuStorage::F32(out), (tokens, self.rows).into()))
    }
}

/// `x · weightᵀ + bias`: `x: [T, cols]`, `weight: [rows, cols]`, result `[T, rows]`.
pub(crate) fn matmul(
    engine: &Engine,
    x: &Tensor,
    weight: Matrix<'_>,
    bias: Option<Slice<'_, f32>>,
    rows: usize,
    cols: usize,
) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Matmul { engine, weight, bias, rows, cols })
}
