//! Rows picked by index: embedding.cu.

use super::cudarc::driver::{CudaView, CudaViewMut, PushKernelArg};
use super::{Cuda, CudaError, THREADS, int, uint};
use crate::kernels::elements;
use half::bf16;

impl Cuda {
    /// `out[t,:] = table[tokens[t],:]` with `table: [V, hidden]`, `out: [T, hidden]`. A token that is not
    /// below V gives a row of NaN.
    ///
    /// # Panics
    ///
    /// When a length is not what the shapes say.
    pub fn embedding(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        table: &CudaView<'_, bf16>,
        tokens: &CudaView<'_, u32>,
        hidden: usize,
    ) -> Result<(), CudaError> {
        assert!(hidden > 0 && table.len().is_multiple_of(hidden), "table");
        assert_eq!(out.len(), elements([tokens.len(), hidden]), "out");
        let (hidden, vocab) = (int(hidden), uint(table.len() / hidden));
        let kernel = self.kernel("embedding", "embedding")?;
        let mut call = kernel.call();
        call.arg(out).arg(table).arg(tokens).arg(&hidden).arg(&vocab);
        // SAFETY: block t reads token t, a row below `vocab` and writes row t: the lengths hold them.
        unsafe { kernel.launch(call, [tokens.len(), 1, 1], THREADS) }
    }

    /// `out[r,:] = x[rows[r],:]` with `x: [T, hidden]`, `out: [R, hidden]`. A row that is not below T
    /// gives a row of NaN.
    ///
    /// # Panics
    ///
    /// When a length is not what the shapes say.
    pub fn gather_rows(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        x: &CudaView<'_, f32>,
        rows: &CudaView<'_, u32>,
        hidden: usize,
    ) -> Result<(), CudaError> {
        assert!(hidden > 0 && x.len().is_multiple_of(hidden), "x");
        assert_eq!(out.len(), elements([rows.len(), hidden]), "out");
        let (hidden, count) = (int(hidden), uint(x.len() / hidden));
        let kernel = self.kernel("embedding", "gather_rows")?;
        let mut call = kernel.call();
        call.arg(out).arg(x).arg(rows).arg(&hidden).arg(&count);
        // SAFETY: block r reads index r, a row below `count` and writes row r: the lengths hold them.
        unsafe { kernel.launch(call, [rows.len(), 1, 1], THREADS) }
    }
}
