//! [`Rows`]: where the rows of a flat batch stand in their sequences and in the cache.

use crate::kernels::AttentionRows;
use candle_core::Result;

/// What the cache write and attention of every layer ask about the rows of a step, gathered once for
/// all layers.
pub(crate) struct Rows<'a> {
    positions: &'a [u32],        // T
    sequences: &'a [u32],        // T, numbers of sequences
    slots: Vec<u64>,             // [layers, T]
    page_tables: Vec<&'a [u32]>, // [layers, sequences]
    layers: usize,
}

impl<'a> Rows<'a> {
    /// Row t is position `positions[t]` of sequence `sequences[t]`; in layer l it is stored at
    /// `slots[l, t]`, and sequence n has the page table `page_tables[l, n]`.
    pub(crate) fn new(
        positions: &'a [u32],
        sequences: &'a [u32],
        slots: Vec<u64>,
        page_tables: Vec<&'a [u32]>,
        layers: usize,
    ) -> Result<Rows<'a>> {
        assert_eq!(slots.len(), layers * positions.len(), "slots");
        assert!(page_tables.len().is_multiple_of(layers), "page_tables");
        Ok(Rows { positions, sequences, slots, page_tables, layers })
    }

    /// Where `layer` stores each row.
    pub(super) fn slots(&self, layer: usize) -> &[u64] {
        &self.slots[layer * self.positions.len()..][..self.positions.len()]
    }

    /// What each row sees of `layer`, whose window is `window`.
    pub(super) fn visible(&self, layer: usize, window: Option<usize>) -> AttentionRows<'_> {
        let count = self.page_tables.len() / self.layers;
        AttentionRows {
            positions: self.positions,
            sequences: self.sequences,
            page_tables: &self.page_tables[layer * count..][..count],
            window,
        }
    }
}
