//! `gather_rows`: some rows of a tensor, in any order.

use super::{f32_slice, u32_slice};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

struct GatherRows;

impl CustomOp2 for GatherRows {
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
}

/// Rows `rows: [R]` u32 of `x: [T, H]`, result `[R, H]`.
pub(crate) fn gather_rows(x: &Tensor, rows: &Tensor) -> Result<Tensor> {
    x.apply_op2_no_bwd(rows, &GatherRows)
}
