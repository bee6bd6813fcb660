//! [`GptOss`]: the transformer itself, from token ids to logits.
//!
//! Reads top to bottom like the model card: embedding, pre-norm blocks of attention and routed
//! experts, final norm, untied head. The layers' own differences (experts, window) come from
//! [`ModelConfig::block_configs`]. Everything is one flat ragged [`Batch`]: a prefill chunk of one
//! sequence and decode steps of others go through the same call, and because every kernel is
//! row-invariant a row's logits do not depend on its company.
//!
//! This is candle's world: activations are candle tensors, and `Device`, `DType` and `Tensor` are
//! candle's own. Sequences and their pages live in [`crate::cache`]; nothing here samples or decodes
//! text.
//!
//! Numbers: weights as stored (BF16, MXFP4), activations and accumulation in f32 unless
//! [`DenseDtype`] or [`Activations`] say otherwise.
//! The forward pass follows openai/gpt-oss `gpt_oss/torch/model.py` and transformers'
//! `modeling_gpt_oss.py`.

mod activations;
mod attention;
mod batch;
mod decoder_layer;
mod dense_dtype;
mod device;
mod linear;
mod moe;
mod norm;
#[cfg(feature = "cuda")]
mod page_tables;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod replay;
mod residual;
mod rope;
mod weight;

pub use crate::kernels::Activations;
pub(crate) use crate::kernels::Draw;
pub use batch::{Batch, LogitRows};
pub use candle_core::{DType, Device, Tensor};
pub use dense_dtype::DenseDtype;
pub use device::DeviceName;
pub(crate) use device::{DeviceMemory, device_memory, workspace};

use crate::cache::{KvCache, Sequence};
use crate::kernels::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::{self, Upload};
use crate::ops::{Engine, HostRows, Rows, Tables};
use crate::weights::Checkpoint;
use crate::{Error, ModelConfig, Result, ops};
use decoder_layer::DecoderLayer;
use linear::Linear;
use norm::RmsNorm;
#[cfg(feature = "cuda")]
use page_tables::PageTables;
#[cfg(feature = "cuda")]
use replay::Replay;
use residual::Residual;
use rope::YarnRope;
#[cfg(feature = "cuda")]
use std::sync::{Mutex, PoisonError};
use weight::Bf16Weight;

/// A gpt-oss or gpt-oss-puzzle transformer, ready to run.
///
/// Immutable and shareable between threads: what changes from step to step lives in
/// [`Sequence`]s.
pub struct GptOss {
    config: ModelConfig,
    engine: Engine,
    device: Device,
    embed_tokens: Bf16Weight, // [V, H]
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    lm_head: Linear, // [V, H]
    rope: YarnRope,
    /// `None` on the CPU. Whoever holds them computes a step: what the device knows of page tables is
    /// right in the order in which its stream is given the steps.
    #[cfg(feature = "cuda")]
    page_tables: Option<Mutex<PageTables>>,
    /// `None` on the CPU.
    #[cfg(feature = "cuda")]
    replay: Option<Replay>,
}

/// What every layer of one forward pass shares.
struct Step<'a> {
    engine: &'a Engine,
    cache: &'a KvCache,
    rows: &'a Rows<'a>,
}

impl GptOss {
    /// Takes the weights of `checkpoint`, which stay in its mapped files. `threads` is the number of
    /// worker threads, 0 for one per available core.
    ///
    /// # Errors
    /// `Checkpoint` for a tensor that is missing or has the wrong dtype or shape; `InvalidRequest`
    /// when `MAX_CPU_ISA` names no instruction set, and for more than 1,024 threads.
    pub fn new(checkpoint: &Checkpoint, threads: usize) -> Result<GptOss> {
        let cpu = Cpu::new(threads).map_err(Error::invalid_request)?;
        GptOss::with_cpu(checkpoint, cpu)
    }

    /// As [`GptOss::new`] on given kernels, so that tests can run every tier.
    #[doc(hidden)]
    pub fn with_cpu(checkpoint: &Checkpoint, cpu: Cpu) -> Result<GptOss> {
        let config = checkpoint.config().clone();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        Ok(GptOss {
            engine: Engine::Cpu(cpu),
            device: Device::Cpu,
            embed_tokens: Bf16Weight::Stored(
                checkpoint.bf16("model.embed_tokens.weight", &[vocab, hidden])?,
            ),
            layers: (0..config.num_hidden_layers())
                .map(|layer| DecoderLayer::new(checkpoint, layer))
                .collect::<Result<_>>()?,
            norm: RmsNorm::new(checkpoint, "model.norm.weight")?,
            lm_head: Linear::without_bias(checkpoint, "lm_head", vocab, hidden)?,
            rope: YarnRope::new(&config.rope, config.head_dim),
            #[cfg(feature = "cuda")]
            page_tables: None,
            #[cfg(feature = "cuda")]
            replay: None,
            config,
        })
    }

    /// Holds the dense matrices as `dtype` says. Comes before [`GptOss::on_device`]: what is on a device
    /// stays as it is.
    #[must_use]
    pub fn with_dense_dtype(mut self, dtype: DenseDtype) -> GptOss {
        if dtype == DenseDtype::Q8 {
            match &self.engine {
                Engine::Cpu(cpu) => {
                    self.layers.iter_mut().for_each(|layer| layer.quantize(cpu));
                    self.lm_head.quantize(cpu);
                }
                #[cfg(feature = "cuda")]
                Engine::Cuda(..) => {
                    tracing::warn!("a model on a CUDA device keeps its dense weights as they are")
                }
            }
        }
        self
    }

    /// Products take their activations as said, see [`Activations`]. Comes before [`GptOss::on_device`]:
    /// what is on a device goes on as it began.
    #[must_use]
    pub fn with_activations(self, activations: Activations) -> GptOss {
        let engine = match self.engine {
            Engine::Cpu(cpu) => Engine::Cpu(cpu.with_activations(activations)),
            #[cfg(feature = "cuda")]
            engine @ Engine::Cuda(..) => {
                tracing::warn!("a model on a CUDA device keeps what its products multiply");
                engine
            }
        };
        GptOss { engine, ..self }
    }

    /// The configuration the model was built from.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Moves the model to `device`, see [`DeviceName::open`]: the weights are copied there, and
    /// `progress` is called with the bytes copied so far. The sequences it is run on must come from a
    /// cache on the same device. Moving to the CPU does nothing.
    ///
    /// # Errors
    /// `Device` when the weights do not fit or the device fails; `InvalidRequest` for a device of another
    /// kind than `cpu` and `cuda`.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "nothing to report"))]
    pub fn on_device(self, device: &Device, progress: impl FnMut(u64)) -> Result<GptOss> {
        match device {
            Device::Cpu if self.device.is_cpu() => Ok(self),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) if self.device.is_cpu() => self.on_cuda(cuda, progress),
            _ => Err(Error::invalid_request(format!(
                "a model cannot move from {:?} to {:?}",
                self.device.location(),
                device.location()
            ))),
        }
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(
        mut self,
        device: &candle_core::CudaDevice,
        progress: impl FnMut(u64),
    ) -> Result<GptOss> {
        let (head_dim, most) = (self.config.head_dim, cuda::MAX_HEAD_DIM);
        if head_dim > most {
            return Err(Error::invalid_request(format!(
                "head_dim is {head_dim}, expected at most {most} on a CUDA device"
            )));
        }
        let activations = self.engine.cpu()?.activations();
        let engine = Engine::on(device, activations)?;
        let mut upload = Upload::new(engine.cuda()?, progress)?;
        self.embed_tokens.upload(&mut upload)?;
        for layer in &mut self.layers {
            layer.upload(&mut upload)?;
        }
        self.norm.upload(&mut upload)?;
        self.lm_head.upload(&mut upload)?;
        upload.finish()?;
        let replay = Some(Replay::new(device, activations)?);
        let device = Device::Cuda(device.clone());
        let page_tables = Some(Mutex::new(PageTables::new(&device, self.layers.len())));
        Ok(GptOss { engine, device, page_tables, replay, ..self })
    }

    /// Never starts a step from a recording, see [`GptOss::forward`]: to measure what that gains.
    #[must_use]
    pub fn without_replay(self) -> GptOss {
        GptOss {
            #[cfg(feature = "cuda")]
            replay: None,
            ..self
        }
    }

    /// How many steps were started from a recording, see [`GptOss::forward`].
    #[cfg(feature = "cuda")]
    #[doc(hidden)]
    pub fn replayed_steps(&self) -> u64 {
        self.replay.as_ref().map_or(0, Replay::replayed)
    }

    /// Where the model runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the model runs on: the CPU's kernels, `scalar`, `avx2` or `avx512`, and the number of
    /// threads; or the GPU by its number, name and compute capability.
    pub fn kernels(&self) -> String {
        self.engine.to_string()
    }

    /// One step over a flat ragged batch.
    ///
    /// Row t of `batch` is one token of `sequences[batch.sequence_ids()[t]]`; its position must be the
    /// next one of that sequence. Keys and values of every row are appended to the sequences, which
    /// must all come from one [`KvCache`]. Returns f32 logits `[rows asked for, V]` in the order of
    /// the rows; no row asked for gives `[0, V]`.
    ///
    /// On a CUDA device, steps of up to 256 sequences by one token each are recorded when they come a
    /// second time, and started as one from then on. Steps that are alike share a recording: those with
    /// the same number of sequences, or about the same above eight, whose longest text is about as long.
    /// A driver that cannot record is said aloud, once. Threads may share a model, and do anything beside
    /// it; its steps come one after another. Code that waits for a whole device while one records
    /// (`cudaDeviceSynchronize`) is refused by the driver and spoils the recording, which is then made
    /// later; nothing in this crate does.
    ///
    /// # Errors
    /// `InvalidRequest` for a batch that is empty or inconsistent with the sequences, or a token
    /// outside the vocabulary; `ContextOverflow` for a position beyond `max_position_embeddings`;
    /// `CacheFull` when the pool has too few pages. The sequences are as they were before the call.
    pub fn forward(&self, batch: &Batch, sequences: &mut [&mut Sequence]) -> Result<Tensor> {
        self.check(batch, sequences)?;
        let counts = batch.tokens_per_sequence(sequences.len());
        let result = reserve(sequences, &counts).and_then(|()| {
            let shared: Vec<&Sequence> = sequences.iter().map(|s| &**s).collect();
            self.run(batch, &shared)
        });
        for (sequence, count) in sequences.iter_mut().zip(counts) {
            match &result {
                Ok(_) => sequence.commit(count),
                Err(_) => sequence.drop_pages_beyond_len(),
            }
        }
        result
    }

    fn run(&self, batch: &Batch, sequences: &[&Sequence]) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(tables) = &self.page_tables {
            let mut tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
            let logits = self.run_on_device(batch, sequences, &mut tables);
            if logits.is_err() {
                tables.forget();
            }
            return logits;
        }
        let layers = 0..self.layers.len();
        let slots = layers.clone().flat_map(|layer| {
            let rows = batch.positions().iter().zip(batch.sequence_ids());
            rows.map(move |(&p, &id)| sequences[id as usize].slot(layer, p as usize))
        });
        let tables = layers.flat_map(|layer| sequences.iter().map(move |s| s.page_table(layer)));
        let tables = Tables::Host { tables: tables.collect(), slots: slots.collect() };
        let rows = self.rows(batch, batch.sequence_ids(), tables);
        self.compute(&self.engine, sequences[0].cache(), &Rows::new(&self.engine, rows)?)
    }

    /// The logits of `rows`, computed by `engine`.
    fn compute(&self, engine: &Engine, cache: &KvCache, rows: &Rows<'_>) -> Result<Tensor> {
        let step = Step { engine, cache, rows };
        let (table, hidden) = (self.embed_tokens.slice(), self.config.hidden_size);
        let mut x = Residual::new(ops::embedding(engine, rows.tokens(), table, hidden)?); // [T, H]
        for (index, layer) in self.layers.iter().enumerate() {
            layer.forward(&mut x, index, &step)?;
        }
        if let Some(logit_rows) = rows.logit_rows() {
            if logit_rows.elem_count() == 0 {
                // Nothing to be computed, and devices have no memory of no bytes.
                return Ok(Tensor::zeros((0, self.config.vocab_size), DType::F32, &Device::Cpu)?);
            }
            x = x.rows(logit_rows, engine)?;
        }
        let x = self.norm.forward(&mut x, engine)?; // [R, H]
        self.lm_head.forward(&x, engine) // [R, V]
    }

    /// Where every row of `batch` stands, whose sequences have the numbers `sequences` in `tables`.
    fn rows<'a>(&self, batch: &'a Batch, sequences: &'a [u32], tables: Tables<'a>) -> HostRows<'a> {
        let (cos, sin) = self.rope.cos_sin(batch.positions());
        HostRows {
            tokens: batch.tokens(),
            positions: batch.positions(),
            sequences,
            logit_rows: batch.logit_rows(),
            cos,
            sin,
            tables,
            layers: self.layers.len(),
        }
    }

    /// Calls `task` with every number below `count`, on the worker threads; on one where the model is on a device,
    /// whose steps need few of the host's.
    pub(crate) fn each_row(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        match &self.engine {
            Engine::Cpu(cpu) if count > 1 => cpu.each(count, task),
            _ => (0..count).for_each(task),
        }
    }

    /// A token of each row of `logits: [R, V]` as `draws` say, drawn on the device that computed them, all
    /// at once, so that no logits have to come to the host. `None` for a row where no token can be drawn,
    /// whose logits say why; for all when the model runs on the CPU or the kernels do not take the
    /// vocabulary.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "the CPU draws elsewhere"))]
    pub(crate) fn draw(&self, logits: &Tensor, draws: &[Draw<'_>]) -> Result<Vec<Option<u32>>> {
        match &self.engine {
            Engine::Cpu(_) => Ok(vec![None; draws.len()]),
            #[cfg(feature = "cuda")]
            Engine::Cuda(..) if self.config.vocab_size > cuda::MAX_VOCAB => {
                Ok(vec![None; draws.len()])
            }
            #[cfg(feature = "cuda")]
            engine @ Engine::Cuda(..) => {
                let drawn = ops::sample(engine, logits, draws)?.flatten_all()?.to_vec1()?;
                let is_token = |token: &u32| (*token as usize) < self.config.vocab_size;
                let tokens = drawn.into_iter().take(draws.len());
                Ok(tokens.map(|token| Some(token).filter(is_token)).collect())
            }
        }
    }
}

/// Takes every page the step needs from the pool, or none.
fn reserve(sequences: &mut [&mut Sequence], counts: &[usize]) -> Result<()> {
    let needed = sequences.iter().zip(counts).map(|(s, &n)| s.pages_to_append(n)).sum();
    let cache = sequences[0].cache().clone();
    let mut pages = cache.allocate(needed)?;
    let appended =
        (sequences.iter_mut().zip(counts)).try_for_each(|(s, &n)| s.append(n, &mut pages));
    cache.release(pages.into_iter());
    appended
}
