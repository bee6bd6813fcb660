//! Writing of the paged cache: rope_kv_write.cu. Row-invariant.

use super::cudarc::driver::{CudaView, CudaViewMut, DevicePtr, PushKernelArg};
use super::{Cuda, CudaError, int};
use crate::kernels::{HeadShape, KvFormat, PAGE_TOKENS, elements, page_count};

const THREADS: usize = 128;

/// How a kernel is told a format: its number, and the scales of keys and values.
pub(super) fn format_arguments(format: KvFormat) -> (i32, f32, f32) {
    match format {
        KvFormat::F32 => (0, 1.0, 1.0),
        KvFormat::Bf16 => (1, 1.0, 1.0),
        KvFormat::Fp8 { k_scale, v_scale } => (2, k_scale, v_scale),
    }
}

impl Cuda {
    /// Panics unless `pages` begins where 16 bytes can be read at once.
    pub(super) fn check_alignment(&self, pages: &impl DevicePtr<u32>) {
        assert!(pages.device_ptr(&self.stream).0.is_multiple_of(16), "pages are not aligned");
    }

    /// Rotates `q: [T, Q, D]` in place and `k: [T, K, D]` on its way into the cache, in pairs
    /// `(i, i + D/2)` by `cos, sin: [T, D/2]`; stores row t of k and of `v: [T, K, D]` at `slots[t]`,
    /// converted to the type of the pages. The slots are distinct; one outside the pool is not written.
    ///
    /// # Panics
    ///
    /// When a length is not what the shapes say, or `pages` is not aligned to 16 bytes.
    #[allow(clippy::too_many_arguments)]
    pub fn rope_kv_write(
        &self,
        q: &mut CudaViewMut<'_, f32>,
        k: &CudaView<'_, f32>,
        v: &CudaView<'_, f32>,
        cos: &CudaView<'_, f32>,
        sin: &CudaView<'_, f32>,
        pages: &mut CudaViewMut<'_, u32>,
        slots: &CudaView<'_, u64>,
        heads: HeadShape,
        format: KvFormat,
    ) -> Result<(), CudaError> {
        let count = page_count(pages.len(), heads, format);
        self.check_alignment(&*pages);
        let HeadShape { q_heads, kv_heads, head_dim } = heads;
        let rows = slots.len();
        assert_eq!(q.len(), elements([rows, q_heads, head_dim]), "q");
        let written = elements([rows, kv_heads, head_dim]);
        assert_eq!((k.len(), v.len()), (written, written), "k, v");
        let angles = elements([rows, head_dim / 2]);
        assert_eq!((cos.len(), sin.len()), (angles, angles), "cos, sin");
        let pieces = elements([q_heads + 2 * kv_heads, head_dim / 8]);
        let slot_count = elements([count, PAGE_TOKENS]) as u64;
        let (q_heads, kv_heads, head_dim) = (int(q_heads), int(kv_heads), int(head_dim));
        let (number, k_scale, v_scale) = format_arguments(format);
        let kernel = self.kernel("rope_kv_write", "rope_kv_write")?;
        let mut call = kernel.call();
        call.arg(q).arg(k).arg(v).arg(cos).arg(sin).arg(pages).arg(slots).arg(&slot_count);
        call.arg(&q_heads).arg(&kv_heads).arg(&head_dim).arg(&number).arg(&k_scale).arg(&v_scale);
        let grid = [rows, pieces.div_ceil(THREADS), 1];
        // SAFETY: block (t, j) reads row t of the inputs, writes row t of q and, where slot t is below
        // their number, that slot: the lengths hold them, and words of the pages are aligned.
        unsafe { kernel.launch(call, grid, THREADS) }
    }
}
