//! `gather_rows`: some rows of a tensor, in any order.

#[cfg(feature = "cuda")]
use super::cuda::{output, view};
use super::{Engine, f32_slice, u32_slice};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

struct GatherRows<'a> {
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "slices need no kernel"))]
    engine: &'a Engine,
}

impl CustomOp2 for GatherRows<'_> {
    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let hidden = x_layout.dims()[1];
        let (x, rows) = (f32_slice(x, x_layout)?, u32_slice(rows, rows_layout)?);
        let mut out = Vec::with_capacity(rows.len() * hidden);
        for &row in rows {
            out.extend_from_slice(&x[row as usize * hidden..][..hidden]);
        }
        Ok((CpuStorage::F32(out), (rows.len(), hidden).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        rows: &CudaStorage,
        rows_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (cuda, hidden) = (self.engine.cuda()?, x_layout.dims()[1]);
        let (values, rows) = (view(x, x_layout)?, view(rows, rows_layout)?);
        let out = output(&x.device, rows.len() * hidden, |out| {
            cuda.gather_rows(out, &values, &rows, hidden)
        })?;
        Ok((out, (rows.len(), hidden).into()))
    }
}

/// Rows `rows: [R]` u32 of `x: [T, H]`, result `[R, H]`.
pub(crate) fn gather_rows(engine: &Engine, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
    x.apply_op2_no_bwd(rows, &GatherRows { engine })
}
