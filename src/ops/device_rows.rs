//! [`DeviceRows`]: the rows of a step on a device, in one tensor that is transferred at once.

use super::HostRows;
use super::cuda::{change, floats, longs, view_mut};
use crate::kernels::cuda::cudarc::driver::CudaView;
use crate::kernels::cuda::{AttentionBlocks, CudaError, RowsOnDevice};
use crate::kernels::{NO_PAGE, PAGE_TOKENS};
use candle_core::{CudaDevice, Device, Result, Tensor};
use std::ops::Range;

/// How much of everything a step has: what the launches of a step depend on. Steps of equal extents make
/// the same launches over their rows, and differ in the numbers that these read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extents {
    rows: usize,   // T
    logits: usize, // R
    layers: usize,
    sequences: usize,
    half: usize,   // D/2
    stride: usize, // entries of a page table
    longest: usize,
    blocks: AttentionBlocks,
}

/// Positions up to which a step of `longest` positions is prepared: an eighth more at most, so that the
/// steps of a long text do not each have extents of their own.
fn with_room(longest: usize) -> usize {
    longest.next_multiple_of((longest.next_power_of_two() / 16).max(1024))
}

impl Extents {
    pub(crate) fn new(rows: &HostRows<'_>) -> Extents {
        let longest = rows.positions.iter().max().map_or(0, |&p| with_room(p as usize + 1));
        let pages = rows.page_tables.iter().map(|table| table.len()).max().unwrap_or(0);
        Extents {
            rows: rows.tokens.len(),
            logits: rows.logit_rows.len(),
            layers: rows.layers,
            sequences: rows.page_tables.len() / rows.layers,
            half: rows.cos.len() / rows.tokens.len().max(1),
            stride: pages.max(longest.div_ceil(PAGE_TOKENS)),
            longest,
            blocks: AttentionBlocks::new(rows.sequences),
        }
    }

    /// Words of each part: slots, tokens, logit rows, positions, sequences, blocks, cosines, sines, page
    /// tables. Slots are 64 bits wide and come first, where they are aligned.
    fn lengths(&self) -> [usize; 9] {
        let (t, angles) = (self.rows, self.rows * self.half);
        let tables = self.layers * self.sequences * self.stride;
        [
            2 * self.layers * t,
            t,
            self.logits,
            t,
            t,
            self.blocks.words().len(),
            angles,
            angles,
            tables,
        ]
    }

    fn range(&self, part: Part) -> Range<usize> {
        let lengths = self.lengths();
        let start = lengths[..part as usize].iter().sum();
        start..start + lengths[part as usize]
    }

    /// All parts in a row.
    fn words(&self, rows: &HostRows<'_>) -> Vec<u32> {
        let mut words = Vec::with_capacity(self.lengths().iter().sum());
        words.extend(rows.slots.iter().flat_map(|slot| [*slot as u32, (slot >> 32) as u32]));
        words.extend([rows.tokens, rows.logit_rows, rows.positions, rows.sequences].concat());
        words.extend(self.blocks.words());
        words.extend(rows.cos.iter().chain(&rows.sin).map(|angle| angle.to_bits()));
        for table in &rows.page_tables {
            words.extend_from_slice(table);
            words.resize(words.len() + self.stride - table.len(), NO_PAGE);
        }
        words
    }
}

/// In the order of [`Extents::lengths`].
#[derive(Clone, Copy)]
enum Part {
    Slots,
    Tokens,
    LogitRows,
    Positions,
    Sequences,
    Blocks,
    Cos,
    Sin,
    PageTables,
}

/// [`HostRows`] on a device.
pub(crate) struct DeviceRows {
    words: Tensor,
    extents: Extents,
}

impl DeviceRows {
    pub(super) fn new(device: &CudaDevice, rows: &HostRows<'_>) -> Result<DeviceRows> {
        let extents = Extents::new(rows);
        let words = Tensor::new(extents.words(rows), &Device::Cuda(device.clone()))?;
        Ok(DeviceRows { words, extents })
    }

    /// Replaces these by `rows`, of the same extents.
    pub(crate) fn write(&self, rows: &HostRows<'_>) -> Result<()> {
        let words = self.extents.words(rows);
        change(&self.words, |storage, layout| {
            let stream = storage.device.cuda_stream();
            let mut to = view_mut::<u32>(storage, layout)?;
            assert_eq!(to.len(), words.len(), "rows of other extents");
            let sent = stream.memcpy_htod(&words, &mut to);
            Ok(sent.map_err(|e| CudaError::new("the rows of a step", e))?)
        })
    }

    fn part_of_tensor(&self, part: Part) -> Result<Tensor> {
        let range = self.extents.range(part);
        self.words.narrow(0, range.start, range.len())
    }

    pub(super) fn tokens(&self) -> Result<Tensor> {
        self.part_of_tensor(Part::Tokens)
    }

    pub(super) fn logit_rows(&self) -> Result<Tensor> {
        self.part_of_tensor(Part::LogitRows)
    }

    /// All of them, in one row.
    pub(super) fn words(&self) -> &Tensor {
        &self.words
    }

    /// What the kernels read of `words`, which are these.
    pub(super) fn parts<'a>(&'a self, words: CudaView<'a, u32>) -> RowParts<'a> {
        RowParts { words, extents: &self.extents }
    }
}

/// The parts of [`DeviceRows`].
pub(super) struct RowParts<'a> {
    words: CudaView<'a, u32>,
    extents: &'a Extents,
}

impl<'a> RowParts<'a> {
    fn part(&self, part: Part) -> CudaView<'a, u32> {
        self.words.slice(self.extents.range(part))
    }

    /// Cosine and sine of each row's angles, `[T, D/2]` each.
    pub(super) fn angles(&self) -> (CudaView<'a, f32>, CudaView<'a, f32>) {
        (floats(&self.part(Part::Cos)), floats(&self.part(Part::Sin)))
    }

    /// Where `layer` stores each row, T.
    pub(super) fn slots(&self, layer: usize) -> CudaView<'a, u64> {
        let count = self.extents.rows;
        longs(&self.part(Part::Slots)).slice(layer * count..(layer + 1) * count)
    }

    /// What each row sees of `layer`, whose window is `window`.
    pub(super) fn visible(&self, layer: usize, window: Option<usize>) -> RowsOnDevice<'a> {
        let Extents { sequences, stride, longest, blocks, .. } = self.extents;
        let tables = sequences * stride;
        RowsOnDevice {
            positions: self.part(Part::Positions),
            sequences: self.part(Part::Sequences),
            page_tables: self.part(Part::PageTables).slice(layer * tables..(layer + 1) * tables),
            table_stride: *stride,
            list: self.part(Part::Blocks),
            blocks,
            window,
            longest: *longest,
        }
    }
}
