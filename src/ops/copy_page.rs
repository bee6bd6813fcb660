//! `copy_page`: one page of the cache onto another, before a shared page is written to.

use super::u32_slice_mut;
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
}

/// Copies page `from` of `pages: [pages, words]` onto page `to`.
pub(crate) fn copy_page(pages: &Tensor, from: u32, to: u32) -> Result<()> {
    pages.inplace_op1(&CopyPage { from: from as usize, to: to as usize })
}
