//! What a step does before its first layer: step_rows.cu.

use super::cudarc::driver::{CudaView, CudaViewMut, PushKernelArg};
use super::{Cuda, CudaError, THREADS, uint};
use crate::kernels::elements;

impl Cuda {
    /// Makes `changes` to the page tables `tables: [layers, sequences, stride]`, and looks up where each
    /// layer stores each row: `slots: [layers, T]`, for `positions, sequences: [T]`.
    ///
    /// `changes` holds their number, which may be less than there is room for, then for each the index of
    /// an entry and the page that belongs there; no entry twice. An index behind the tables changes
    /// nothing. The slot of a row without a table entry is outside every pool.
    ///
    /// # Panics
    ///
    /// When a length is not what the shapes say, or the tables have 2^32 entries.
    #[allow(clippy::too_many_arguments)]
    pub fn step_rows(
        &self,
        slots: &mut CudaViewMut<'_, u64>,
        tables: &mut CudaViewMut<'_, u32>,
        changes: &CudaView<'_, u32>,
        positions: &CudaView<'_, u32>,
        sequences: &CudaView<'_, u32>,
        layers: usize,
        stride: usize,
    ) -> Result<(), CudaError> {
        let rows = positions.len();
        assert_eq!(sequences.len(), rows, "sequences");
        assert_eq!(slots.len(), elements([layers, rows]), "slots");
        assert!(!changes.len().is_multiple_of(2), "changes");
        assert!(layers > 0 && stride > 0, "{layers} layers, {stride} entries");
        assert!(tables.len().is_multiple_of(layers * stride), "tables");
        // Every index of an entry is one of these, too.
        let _ = uint(tables.len());
        let (sequence_count, stride) = (uint(tables.len() / layers / stride), uint(stride));
        let (rows, most) = (uint(rows), uint(changes.len() / 2));
        let kernel = self.kernel("step_rows", "step_rows")?;
        let mut call = kernel.call();
        call.arg(slots).arg(tables).arg(changes).arg(&most).arg(positions).arg(sequences);
        call.arg(&rows).arg(&sequence_count).arg(&stride);
        // SAFETY: block l reads at most `most` changes, writes entries of layer l alone, and reads those and
        // the rows, whose slots of layer l it writes: the lengths hold them.
        unsafe { kernel.launch(call, [layers, 1, 1], THREADS) }
    }
}
