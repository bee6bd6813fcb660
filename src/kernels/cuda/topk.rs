//! Routing: topk.cu. Row-invariant.

use super::cudarc::driver::{CudaView, CudaViewMut, PushKernelArg};
use super::{Cuda, CudaError, int};
use crate::kernels::elements;

/// Rows per block: a warp each.
const ROWS: usize = 4;

impl Cuda {
    /// The k largest of each row of `logits: [T, experts]` in descending order, ties to the lower index,
    /// and the softmax over those k; `indices, weights: [T, k]`. A NaN ranks below every number; when one
    /// is among the k, the row's weights are NaN.
    ///
    /// Of the rows, the first `live[0]` are meant; the others go to no expert, index `experts` with weight
    /// 0. `None` means all of them.
    ///
    /// # Panics
    ///
    /// When k is 0 or above `experts`, or a length is not what the shapes say.
    pub fn topk_softmax(
        &self,
        indices: &mut CudaViewMut<'_, u32>,
        weights: &mut CudaViewMut<'_, f32>,
        logits: &CudaView<'_, f32>,
        live: Option<&CudaView<'_, u32>>,
        experts: usize,
        k: usize,
    ) -> Result<(), CudaError> {
        assert!(k > 0 && k <= experts, "k is {k}, experts are {experts}");
        assert!(logits.len().is_multiple_of(experts), "logits");
        let t = logits.len() / experts;
        let chosen = elements([t, k]);
        assert_eq!((indices.len(), weights.len()), (chosen, chosen), "indices, weights");
        assert!(live.is_none_or(|live| live.len() == 1), "live");
        let null = 0u64;
        let (tokens, e, k) = (int(t), int(experts), int(k));
        let kernel = self.kernel("topk", "topk_softmax")?;
        let mut call = kernel.call();
        call.arg(indices).arg(weights).arg(logits);
        match live {
            Some(live) => call.arg(live),
            None => call.arg(&null),
        };
        call.arg(&tokens).arg(&e).arg(&k);
        // SAFETY: a warp reads its row below T and writes the k results of that row; `live` is one number,
        // or null, which the kernel knows.
        unsafe { kernel.launch(call, [t.div_ceil(ROWS), 1, 1], 32 * ROWS) }
    }
}
