//! [`Rows`]: where the rows of a flat batch stand in their sequences and in the cache.

use super::Engine;
use crate::kernels::AttentionRows;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::{self, CudaError, cudarc::driver::CudaSlice, cudarc::driver::CudaView};
use candle_core::Result;
#[cfg(feature = "cuda")]
use candle_core::bail;

/// What the cache write and attention of every layer ask about the rows of a step, gathered once for
/// all layers and, when they run on a device, brought there once.
pub(crate) struct Rows<'a> {
    positions: &'a [u32],        // T
    sequences: &'a [u32],        // T, numbers of sequences
    slots: Vec<u64>,             // [layers, T]
    page_tables: Vec<&'a [u32]>, // [layers, sequences]
    layers: usize,
    #[cfg(feature = "cuda")]
    on_device: Option<DeviceRows>,
}

impl<'a> Rows<'a> {
    /// Row t is position `positions[t]` of sequence `sequences[t]`; in layer l it is stored at
    /// `slots[l, t]`, and sequence n has the page table `page_tables[l, n]`.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "nothing to bring there"))]
    pub(crate) fn new(
        engine: &Engine,
        positions: &'a [u32],
        sequences: &'a [u32],
        slots: Vec<u64>,
        page_tables: Vec<&'a [u32]>,
        layers: usize,
    ) -> Result<Rows<'a>> {
        assert_eq!(slots.len(), layers * positions.len(), "slots");
        assert!(page_tables.len().is_multiple_of(layers), "page_tables");
        let rows = Rows {
            positions,
            sequences,
            slots,
            page_tables,
            layers,
            #[cfg(feature = "cuda")]
            on_device: None,
        };
        #[cfg(feature = "cuda")]
        if let Engine::Cuda(cuda) = engine {
            let on_device = Some(DeviceRows::new(cuda, &rows)?);
            return Ok(Rows { on_device, ..rows });
        }
        Ok(rows)
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

    /// The same on the device.
    #[cfg(feature = "cuda")]
    pub(super) fn on_device(&self) -> Result<&DeviceRows> {
        match &self.on_device {
            Some(rows) => Ok(rows),
            None => bail!("the model is in host memory, a tensor on a CUDA device"),
        }
    }
}

/// [`Rows`] on a device.
#[cfg(feature = "cuda")]
pub(super) struct DeviceRows {
    /// `positions: [T]`, `sequences: [T]`, then the page tables `[layers, sequences, stride]`.
    words: CudaSlice<u32>,
    slots: CudaSlice<u64>, // [layers, T]
    blocks: cuda::AttentionBlocks,
    count: usize,  // T
    tables: usize, // elements of one layer's page tables
    stride: usize,
    longest: usize,
}

#[cfg(feature = "cuda")]
impl DeviceRows {
    fn new(cuda: &cuda::Cuda, rows: &Rows<'_>) -> Result<DeviceRows> {
        let stride = rows.page_tables.iter().map(|table| table.len()).max().unwrap_or(0);
        let count = rows.positions.len();
        let mut words = Vec::with_capacity(2 * count + rows.page_tables.len() * stride);
        words.extend_from_slice(rows.positions);
        words.extend_from_slice(rows.sequences);
        for table in &rows.page_tables {
            words.extend_from_slice(table);
            words.resize(words.len() + stride - table.len(), crate::kernels::NO_PAGE);
        }
        let failed = |e| CudaError::new("the page tables of a step", e);
        Ok(DeviceRows {
            words: cuda.stream().clone_htod(&words).map_err(failed)?,
            slots: cuda.stream().clone_htod(&rows.slots).map_err(failed)?,
            blocks: cuda.attention_blocks(rows.sequences)?,
            count,
            tables: rows.page_tables.len() / rows.layers * stride,
            stride,
            longest: rows.positions.iter().max().map_or(0, |&p| p as usize + 1),
        })
    }

    pub(super) fn slots(&self, layer: usize) -> CudaView<'_, u64> {
        self.slots.slice(layer * self.count..(layer + 1) * self.count)
    }

    pub(super) fn visible(&self, layer: usize, window: Option<usize>) -> cuda::RowsOnDevice<'_> {
        let tables = 2 * self.count + layer * self.tables;
        cuda::RowsOnDevice {
            positions: self.words.slice(..self.count),
            sequences: self.words.slice(self.count..2 * self.count),
            page_tables: self.words.slice(tables..tables + self.tables),
            table_stride: self.stride,
            blocks: &self.blocks,
            window,
            longest: self.longest,
        }
    }
}
