//! `matmul`: dense projections of f32 activations.

#[cfg(feature = "cuda")]
use super::cuda::{output, view};
use super::{Engine, Matrix, Slice, f32_slice};
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// A dense projection to `rows` features.
#[derive(Clone, Copy)]
pub(crate) struct Projection<'a> {
    /// `[rows, cols]`.
    pub(crate) weight: Matrix<'a>,
    /// `[rows]`.
    pub(crate) bias: Option<Slice<'a, f32>>,
    /// Output features.
    pub(crate) rows: usize,
}

struct Matmul<'a, const N: usize> {
    engine: &'a Engine,
    projections: [Projection<'a>; N],
}

impl<const N: usize> Matmul<'_, N> {
    /// Elements of all results for `tokens` rows of x.
    fn elements(&self, tokens: usize) -> usize {
        tokens * self.projections.iter().map(|p| p.rows).sum::<usize>()
    }
}

impl<const N: usize> CustomOp1 for Matmul<'_, N> {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, cols) = (layout.dims()[0], layout.dims()[1]);
        let x = f32_slice(x, layout)?;
        let mut all = vec![0.0; self.elements(tokens)];
        let mut rest = &mut all[..];
        for Projection { weight, bias, rows } in &self.projections {
            let (out, later) = rest.split_at_mut(tokens * rows);
            let bias = bias.map(Slice::host).transpose()?;
            self.engine.cpu()?.matmul(out, weight.host()?, x, bias, *rows, cols);
            rest = later;
        }
        let elements = all.len();
        Ok((CpuStorage::F32(all), elements.into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (tokens, cols) = (layout.dims()[0], layout.dims()[1]);
        let (kernels, values) = (self.engine.cuda()?, view(x, layout)?);
        let (mut weights, mut biases) = (Vec::with_capacity(N), Vec::with_capacity(N));
        for Projection { weight, bias, .. } in &self.projections {
            weights.push(weight.cuda()?);
            biases.push(bias.map(Slice::cuda).transpose()?);
        }
        let projections = std::array::from_fn::<_, N, _>(|i| cuda::Projection {
            weight: &weights[i],
            bias: biases[i].as_ref(),
            rows: self.projections[i].rows,
        });
        let elements = self.elements(tokens);
        let all = output(&x.device, elements, |all| {
            kernels.matmul_each(all, projections, &values, cols)
        })?;
        Ok((all, elements.into()))
    }
}

/// `x · weightᵀ + bias`: `x: [T, cols]`, result `[T, rows]`.
pub(crate) fn matmul(engine: &Engine, x: &Tensor, projection: Projection<'_>) -> Result<Tensor> {
    let rows = projection.rows;
    matmul_each(engine, x, [projection])?.reshape((x.dim(0)?, rows))
}

/// The same for several weights at once; the results lie in one tensor `[T · Σ rows]`, one after another.
pub(crate) fn matmul_each<const N: usize>(
    engine: &Engine,
    x: &Tensor,
    projections: [Projection<'_>; N],
) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Matmul { engine, projections })
}
