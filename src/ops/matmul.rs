//! `matmul`: a dense projection of f32 activations.

#[cfg(feature = "cuda")]
use super::cuda::{output, view};
use super::{Engine, Matrix, Slice, f32_slice};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
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

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let tokens = layout.dims()[0];
        let (cuda, weight) = (self.engine.cuda()?, self.weight.cuda()?);
        let bias = self.bias.map(Slice::cuda).transpose()?;
        let values = view(x, layout)?;
        let out = output(&x.device, tokens * self.rows, |out| {
            cuda.matmul(out, &weight, &values, bias.as_ref(), self.rows, self.cols)
        })?;
        Ok((out, (tokens, self.rows).into()))
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
