//! [`DeviceRows`]: the rows of a step on a device, in one tensor that is transferred at once.

use super::cuda::{change, floats, longs, longs_mut, on_device, view, view_mut, words_to_fill};
use super::{DeviceTables, Engine, HostRows, Tables};
use crate::kernels::PAGE_TOKENS;
use crate::kernels::cuda::cudarc::driver::CudaView;
use crate::kernels::cuda::{AttentionBlocks, CudaError, RowsOnDevice, padded_rows};
use candle_core::{CudaDevice, Device, Result, Tensor, bail};
use std::ops::Range;

/// How much of everything a step has: what the launches of a step depend on. Steps of equal extents make
/// the same launches over their rows, and differ in the numbers that these read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extents {
    rows: usize,   // T
    logits: usize, // R
    layers: usize,
    half: usize,    // D/2
    changes: usize, // of page tables, at most
    longest: usize,
    blocks: AttentionBlocks,
}

/// Positions up to which a step of `longest` positions is prepared: an eighth more at most, so that the
/// steps of a long text do not each have extents of their own.
fn with_room(longest: usize) -> usize {
    longest.next_multiple_of((longest.next_power_of_two() / 16).max(1024))
}

/// What stands for the token and the sequence of a row of padding: neither is one.
const NONE: u32 = u32::MAX;

impl Extents {
    /// Of a step that is launched for `rows` and no others.
    pub(crate) fn of_launches(rows: &HostRows<'_>) -> Extents {
        let longest = rows.positions.iter().max().map_or(0, |&p| with_room(p as usize + 1));
        Extents {
            rows: rows.tokens.len(),
            logits: rows.logit_rows.len(),
            layers: rows.layers,
            half: rows.cos.len() / rows.tokens.len().max(1),
            changes: changes(rows).len() / 2,
            longest,
            blocks: AttentionBlocks::new(rows.sequences),
        }
    }

    /// Of a step of decode that is recorded, for `rows` and others like them: with rows of padding, and
    /// room for a new page for every row in every layer.
    pub(crate) fn of_recording(rows: &HostRows<'_>) -> Extents {
        let padded = padded_rows(rows.tokens.len());
        Extents {
            rows: padded,
            logits: padded,
            changes: rows.layers * padded,
            blocks: AttentionBlocks::singles(padded),
            ..Extents::of_launches(rows)
        }
    }

    /// Rows, those of padding included.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Changes of page tables that the rows have room for.
    pub(crate) fn changes(&self) -> usize {
        self.changes
    }

    /// Words of each part. What is the same for all steps of these extents comes first, what has another
    /// length in each comes last.
    fn lengths(&self) -> [usize; 9] {
        let (t, angles) = (self.rows, self.rows * self.half);
        let blocks = self.blocks.words().len();
        [self.logits, blocks, 1, t, t, t, angles, angles, 1 + 2 * self.changes]
    }

    fn range(&self, part: Part) -> Range<usize> {
        let lengths = self.lengths();
        let start = lengths[..part as usize].iter().sum();
        start..start + lengths[part as usize]
    }

    /// The parts that are the same for all steps.
    fn first_words(&self, rows: &HostRows<'_>) -> Vec<u32> {
        let mut words = Vec::with_capacity(self.lengths().iter().sum());
        words.extend(rows.logit_rows);
        words.extend(rows.logit_rows.len() as u32..self.logits as u32);
        words.extend(self.blocks.words());
        words
    }

    /// Adds the other parts, but for the end of the last that is not used.
    fn add_step_words(&self, words: &mut Vec<u32>, rows: &HostRows<'_>) {
        let (live, padding) = (rows.tokens.len(), self.rows - rows.tokens.len());
        let padded = |words: &mut Vec<u32>, part: &[u32], by: u32| {
            words.extend(part);
            words.resize(words.len() + padding, by);
        };
        words.push(live as u32);
        padded(words, rows.tokens, NONE);
        padded(words, rows.positions, 0);
        padded(words, rows.sequences, NONE);
        for angles in [&rows.cos, &rows.sin] {
            words.extend(angles.iter().map(|angle| angle.to_bits()));
            words.resize(words.len() + padding * self.half, 0);
        }
        let changes = changes(rows);
        assert!(changes.len() <= 2 * self.changes, "more changes than there is room for");
        words.push((changes.len() / 2) as u32);
        words.extend(changes);
    }
}

fn changes<'a>(rows: &HostRows<'a>) -> &'a [u32] {
    match rows.tables {
        Tables::Host { .. } => &[],
        Tables::Device { changes, .. } => changes,
    }
}

/// In the order of [`Extents::lengths`].
#[derive(Clone, Copy)]
enum Part {
    LogitRows,
    Blocks,
    Live,
    Tokens,
    Positions,
    Sequences,
    Cos,
    Sin,
    Changes,
}

/// [`HostRows`] on a device.
pub(crate) struct DeviceRows {
    words: Tensor,
    /// Where each layer stores each row, `[layers, T]`; made by [`DeviceRows::prepare`].
    slots: Tensor,
    tables: DeviceTables,
    extents: Extents,
}

impl DeviceRows {
    pub(super) fn new(
        device: &CudaDevice,
        rows: &HostRows<'_>,
        extents: Extents,
    ) -> Result<DeviceRows> {
        let Tables::Device { tables, .. } = rows.tables else {
            bail!("the page tables are in host memory, the model on a CUDA device")
        };
        let device = Device::Cuda(device.clone());
        let mut words = extents.first_words(rows);
        extents.add_step_words(&mut words, rows);
        words.resize(extents.lengths().iter().sum(), 0);
        let words = Tensor::new(words, &device)?;
        // As u64; one at least, because devices have no memory of no bytes.
        let count = (extents.layers * extents.rows).max(1);
        let slots = words_to_fill(&device, 2 * count)?;
        Ok(DeviceRows { words, slots, tables: tables.clone(), extents })
    }

    /// Replaces these by `rows`, of which they have the extents, in one transfer. `words` is memory to
    /// work in. What [`DeviceRows::prepare`] does is to be done again.
    pub(crate) fn write(&self, rows: &HostRows<'_>, words: &mut Vec<u32>) -> Result<()> {
        words.clear();
        self.extents.add_step_words(words, rows);
        change(&self.words, |storage, layout| {
            let stream = storage.device.cuda_stream();
            let mut all = view_mut::<u32>(storage, layout)?;
            let start = self.extents.range(Part::Live).start;
            let sent = stream.memcpy_htod(words, &mut all.slice_mut(start..start + words.len()));
            Ok(sent.map_err(|e| CudaError::new("the rows of a step", e))?)
        })
    }

    /// Changes the page tables and looks up the rows' slots.
    pub(super) fn prepare(&self, engine: &Engine) -> Result<()> {
        let (words, layout) = self.words.storage_and_layout();
        let rows = self.parts(view(on_device(&words)?, layout)?);
        let [changes, positions, sequences] =
            [Part::Changes, Part::Positions, Part::Sequences].map(|part| rows.part(part));
        let Extents { layers, rows, .. } = self.extents;
        change(&self.slots, |slots, layout| {
            let mut slots = view_mut::<u32>(slots, layout)?;
            let mut slots = slots.slice_mut(..2 * layers * rows);
            let slots = &mut longs_mut(&mut slots);
            self.tables.change(|tables, stride| {
                engine
                    .cuda()?
                    .step_rows(slots, tables, &changes, &positions, &sequences, layers, stride)?;
                Ok(())
            })
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

    /// All but slots and page tables, in one row.
    pub(super) fn words(&self) -> &Tensor {
        &self.words
    }

    /// Where each layer stores each row, two words each.
    pub(super) fn slots(&self) -> &Tensor {
        &self.slots
    }

    /// The page tables.
    pub(super) fn tables(&self) -> &DeviceTables {
        &self.tables
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

    /// How many rows are none of padding, one number.
    pub(super) fn live(&self) -> CudaView<'a, u32> {
        self.part(Part::Live)
    }

    /// Cosine and sine of each row's angles, `[T, D/2]` each.
    pub(super) fn angles(&self) -> (CudaView<'a, f32>, CudaView<'a, f32>) {
        (floats(&self.part(Part::Cos)), floats(&self.part(Part::Sin)))
    }

    /// Of all slots, those where `layer` stores each row, T.
    pub(super) fn slots(&self, slots: &CudaView<'a, u32>, layer: usize) -> CudaView<'a, u64> {
        let count = self.extents.rows;
        longs(slots).slice(layer * count..(layer + 1) * count)
    }

    /// What each row sees of `layer`, whose window is `window` and whose page tables are `tables`, with
    /// `stride` pages each.
    pub(super) fn visible(
        &self,
        tables: CudaView<'a, u32>,
        stride: usize,
        window: Option<usize>,
    ) -> RowsOnDevice<'a> {
        // Tables grow ahead of what the rows of a step are prepared for.
        debug_assert!(self.extents.longest <= stride * PAGE_TOKENS);
        RowsOnDevice {
            positions: self.part(Part::Positions),
            sequences: self.part(Part::Sequences),
            page_tables: tables,
            table_stride: stride,
            list: self.part(Part::Blocks),
            blocks: &self.extents.blocks,
            window,
            longest: self.extents.longest,
        }
    }
}
