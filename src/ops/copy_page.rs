//! `copy_page`: one page of the cache onto another, before a shared page is written to.

#[cfg(feature = "cuda")]
use super::cuda::view_mut;
use super::u32_slice_mut;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

struct CopyPage {
    from: usize,
    to: usize,
}

impl InplaceOp1 for CopyPage {
    fn name(&self) -> &'static str {
        "copy_page"
    }

    fn cpu_fwd(&self, pages: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let words = layout.dims()[1];
        let pages = u32_slice_mut(pages, layout)?;
        pages.copy_within(self.from * words..(self.from + 1) * words, self.to * words);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, pages: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let (words, device) = (layout.dims()[1], pages.device.clone());
        let mut pages = view_mut::<u32>(pages, layout)?;
        // Split between the two, so that one may be read while the other is written.
        let (mut low, mut high) = pages.split_at_mut(self.from.max(self.to) * words);
        let page = |n: usize| n * words..(n + 1) * words;
        if self.from < self.to {
            device.memcpy_dtod(&low.slice(page(self.from)), &mut high.slice_mut(page(0)))
        } else if self.from > self.to {
            device.memcpy_dtod(&high.slice(page(0)), &mut low.slice_mut(page(self.to)))
        } else {
            Ok(())
        }
    }
}

/// Copies page `from` of `pages: [pages, words]` onto page `to`.
pub(crate) fn copy_page(pages: &Tensor, from: u32, to: u32) -> Result<()> {
    pages.inplace_op1(&CopyPage { from: from as usize, to: to as usize })
}
