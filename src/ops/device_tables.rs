//! [`DeviceTables`]: the page tables of sequences, kept on a device from step to step.

use super::cuda::{change, view_mut};
use super::{DeviceRows, Engine, Extents, HostRows, Tables};
use crate::kernels::cuda::cudarc::driver::{CudaView, CudaViewMut};
use candle_core::{DType, Device, Result, Tensor};

/// Page tables `[layers, sequences, stride]`, each sequence's at a number of its own. They are only as new
/// as what was sent: changes come with the rows of a step, as pairs of words: the index of an entry, and
/// the page that belongs there; no index twice.
#[derive(Clone)]
pub(crate) struct DeviceTables {
    words: Tensor,
}

impl DeviceTables {
    /// Tables of `stride` pages for as many sequences, of no meaning yet.
    pub(crate) fn new(
        device: &Device,
        layers: usize,
        sequences: usize,
        stride: usize,
    ) -> Result<DeviceTables> {
        let words = Tensor::zeros((layers, sequences, stride), DType::U32, device)?;
        Ok(DeviceTables { words })
    }

    /// How many sequences have a number.
    pub(crate) fn sequences(&self) -> usize {
        self.words.dims()[1]
    }

    /// Pages of a table.
    pub(crate) fn stride(&self) -> usize {
        self.words.dims()[2]
    }

    /// The index of page `page` of sequence number `sequence`.
    pub(crate) fn index(&self, layer: usize, sequence: usize, page: usize) -> u32 {
        debug_assert!(sequence < self.sequences() && page <= self.stride());
        ((layer * self.sequences() + sequence) * self.stride() + page) as u32
    }

    /// Whether these are the very same tables.
    pub(crate) fn are(&self, other: &DeviceTables) -> bool {
        self.words.id() == other.words.id()
    }

    /// Makes `changes`, of which a step has no room for so many.
    pub(crate) fn make(&self, engine: &Engine, changes: &[u32]) -> Result<()> {
        let rows = HostRows {
            tokens: &[],
            positions: &[],
            sequences: &[],
            logit_rows: &[],
            cos: Vec::new(),
            sin: Vec::new(),
            tables: Tables::Device { tables: self, changes },
            layers: self.words.dims()[0],
        };
        DeviceRows::new(engine.cuda_device()?, &rows, Extents::of_launches(&rows))?.prepare(engine)
    }

    /// Gives `f` all of them, to be changed, and their stride.
    pub(super) fn change(
        &self,
        f: impl FnOnce(&mut CudaViewMut<'_, u32>, usize) -> Result<()>,
    ) -> Result<()> {
        change(&self.words, |words, layout| f(&mut view_mut(words, layout)?, self.stride()))
    }

    /// All of them.
    pub(super) fn words(&self) -> &Tensor {
        &self.words
    }

    /// Of all of them, those of `layer`.
    pub(super) fn of_layer<'a>(&self, all: &CudaView<'a, u32>, layer: usize) -> CudaView<'a, u32> {
        let count = self.sequences() * self.stride();
        all.slice(layer * count..(layer + 1) * count)
    }
}
