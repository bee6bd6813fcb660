//! [`Rows`]: where the rows of a flat batch stand in their sequences and in the cache.

use super::Engine;
#[cfg(feature = "cuda")]
use super::{DeviceRows, DeviceTables, Extents};
use crate::kernels::AttentionRows;
#[cfg(feature = "cuda")]
use candle_core::bail;
use candle_core::{Device, Result, Tensor};

/// What the ops of every layer ask about the rows of a step, gathered once for all layers.
#[derive(Clone)]
pub(crate) struct HostRows<'a> {
    /// Tokens, T.
    pub(crate) tokens: &'a [u32],
    /// Position of each row in its sequence, T.
    pub(crate) positions: &'a [u32],
    /// Number of each row's page table, T.
    pub(crate) sequences: &'a [u32],
    /// Rows whose logits are wanted, ascending, R.
    pub(crate) logit_rows: &'a [u32],
    /// Cosine of each row's angles, `[T, D/2]`.
    pub(crate) cos: Vec<f32>,
    /// Sine of the same, `[T, D/2]`.
    pub(crate) sin: Vec<f32>,
    /// The page tables.
    pub(crate) tables: Tables<'a>,
    /// Number of layers.
    pub(crate) layers: usize,
}

/// The page tables of a step's sequences.
#[derive(Clone)]
pub(crate) enum Tables<'a> {
    /// In host memory.
    Host {
        /// Page table of each sequence in each layer, `[layers, sequences]`.
        tables: Vec<&'a [u32]>,
        /// Where each layer stores each row, `[layers, T]`.
        slots: Vec<u64>,
    },
    /// On a device.
    #[cfg(feature = "cuda")]
    Device {
        /// As the steps before left them.
        tables: &'a DeviceTables,
        /// What changes with this step, see [`DeviceTables`].
        changes: &'a [u32],
    },
}

impl HostRows<'_> {
    /// Whether every row is alone in its sequence and has its logits asked for: a step of decode.
    #[cfg(feature = "cuda")]
    pub(crate) fn are_decode(&self) -> bool {
        self.logit_rows.len() == self.tokens.len()
            && self.sequences.windows(2).all(|pair| pair[0] != pair[1])
    }
}

/// [`HostRows`] where the engine reads them.
pub(crate) struct Rows<'a> {
    host: HostRows<'a>,
    tokens: Tensor,     // [T]
    logit_rows: Tensor, // [R]
    #[cfg(feature = "cuda")]
    on_device: Option<DeviceRows>,
}

impl<'a> Rows<'a> {
    /// Brings `rows` to where `engine` computes, in one piece.
    pub(crate) fn new(engine: &Engine, rows: HostRows<'a>) -> Result<Rows<'a>> {
        match engine {
            Engine::Cpu(_) => Ok(Rows {
                tokens: Tensor::new(rows.tokens, &Device::Cpu)?,
                logit_rows: Tensor::new(rows.logit_rows, &Device::Cpu)?,
                host: rows,
                #[cfg(feature = "cuda")]
                on_device: None,
            }),
            #[cfg(feature = "cuda")]
            Engine::Cuda(..) => {
                let extents = Extents::of_launches(&rows);
                let rows = Rows::to_record(engine, rows, extents)?;
                rows.prepare(engine)?;
                Ok(rows)
            }
        }
    }

    /// As [`Rows::new`], with padding up to `extents`; [`Rows::prepare`] is still to be recorded, before
    /// anything else.
    #[cfg(feature = "cuda")]
    pub(crate) fn to_record(
        engine: &Engine,
        rows: HostRows<'a>,
        extents: Extents,
    ) -> Result<Rows<'a>> {
        let on_device = DeviceRows::new(engine.cuda_device()?, &rows, extents)?;
        Ok(Rows {
            tokens: on_device.tokens()?,
            logit_rows: on_device.logit_rows()?,
            host: rows,
            on_device: Some(on_device),
        })
    }

    /// Changes the page tables and looks up the rows' slots, on the stream of `engine`.
    #[cfg(feature = "cuda")]
    pub(crate) fn prepare(&self, engine: &Engine) -> Result<()> {
        self.on_device()?.prepare(engine)
    }

    /// Tokens, `[T]`.
    pub(crate) fn tokens(&self) -> &Tensor {
        &self.tokens
    }

    /// Rows whose logits are wanted, `[R]`; `None` when all are.
    pub(crate) fn logit_rows(&self) -> Option<&Tensor> {
        (self.host.logit_rows.len() < self.host.tokens.len()).then_some(&self.logit_rows)
    }

    /// Cosine and sine of each row's angles, `[T, D/2]` each.
    pub(super) fn angles(&self) -> (&[f32], &[f32]) {
        (&self.host.cos, &self.host.sin)
    }

    /// Where `layer` stores each row.
    pub(super) fn slots(&self, layer: usize) -> &[u64] {
        let count = self.host.tokens.len();
        &self.in_host_memory().1[layer * count..][..count]
    }

    /// What each row sees of `layer`, whose window is `window`.
    pub(super) fn visible(&self, layer: usize, window: Option<usize>) -> AttentionRows<'_> {
        let (tables, _) = self.in_host_memory();
        let count = tables.len() / self.host.layers;
        AttentionRows {
            positions: self.host.positions,
            sequences: self.host.sequences,
            page_tables: &tables[layer * count..][..count],
            window,
        }
    }

    /// Page tables and slots.
    fn in_host_memory(&self) -> (&[&[u32]], &[u64]) {
        match &self.host.tables {
            Tables::Host { tables, slots } => (tables, slots),
            #[cfg(feature = "cuda")]
            Tables::Device { .. } => panic!("the rows are of a step on a device"),
        }
    }

    /// What was brought to the device.
    #[cfg(feature = "cuda")]
    pub(crate) fn into_device_rows(self) -> Option<DeviceRows> {
        self.on_device
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
