//! [`ModelBuilder`]: how a checkpoint becomes a [`Model`], and how much memory its cache may take.

use super::Model;
use super::guide::Guidance;
use super::model::Parts;
use super::room::Room;
use crate::cache::{KvCache, KvCacheConfig, KvDtype, PrefixCache};
use crate::generation::{GenerateOptions, GenerationConfig, StopTokens};
use crate::harmony::{Dialect, Renderer};
use crate::model::{Activations, DenseDtype, DeviceName, GptOss, device_memory};
use crate::tokenizer::Tokenizer;
use crate::weights::{Checkpoint, KvScales};
#[cfg(feature = "hub")]
use crate::weights::{DownloadProgress, Hub};
use crate::{Error, ErrorKind, Result};
#[cfg(feature = "hub")]
use std::path::Path;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Options for loading a [`Model`].
#[must_use]
pub struct ModelBuilder {
    source: Source,
    device: DeviceName,
    threads: usize,
    dense_dtype: DenseDtype,
    activations: Activations,
    kv_dtype: KvDtype,
    kv_scales: Option<Vec<KvScales>>,
    context: Option<usize>,
    sequences: usize,
    /// Answers at once, and the share of a GPU's memory.
    serving: Option<(usize, f64)>,
    prefill_chunk: usize,
    renderer: Option<Renderer>,
    warm: Option<Box<dyn FnMut(u64, u64) + Send>>,
    #[cfg(feature = "hub")]
    download: Download,
}

/// How a model of the hub is fetched.
#[cfg(feature = "hub")]
struct Download {
    hub: Hub,
    revision: String,
    progress: Box<dyn Fn(&DownloadProgress) + Send + Sync>,
}

enum Source {
    Named(PathBuf),
    Parts(Box<(Checkpoint, Tokenizer)>),
}

impl ModelBuilder {
    /// From the checkpoint directory `name`, or the hub's model of that name.
    pub(super) fn named(name: PathBuf) -> ModelBuilder {
        ModelBuilder::new(Source::Named(name))
    }

    pub(super) fn from_parts(checkpoint: Checkpoint, tokenizer: Tokenizer) -> ModelBuilder {
        ModelBuilder::new(Source::Parts(Box::new((checkpoint, tokenizer))))
    }

    fn new(source: Source) -> ModelBuilder {
        ModelBuilder {
            source,
            device: DeviceName::default(),
            threads: 0,
            dense_dtype: DenseDtype::default(),
            activations: Activations::default(),
            kv_dtype: KvDtype::default(),
            kv_scales: None,
            context: None,
            sequences: 1,
            serving: None,
            prefill_chunk: GenerateOptions::PREFILL_CHUNK,
            renderer: None,
            warm: None,
            #[cfg(feature = "hub")]
            download: Download {
                hub: Hub::new(),
                revision: "main".into(),
                progress: Box::new(|_| {}),
            },
        }
    }

    /// The hub to download from, with its cache and access token.
    #[cfg(feature = "hub")]
    pub fn hub(mut self, hub: Hub) -> Self {
        self.download.hub = hub;
        self
    }

    /// The branch, tag or commit to download; `main` by default.
    #[cfg(feature = "hub")]
    pub fn revision(mut self, revision: impl Into<String>) -> Self {
        self.download.revision = revision.into();
        self
    }

    /// Called, from another thread, while a download goes on.
    #[cfg(feature = "hub")]
    pub fn progress(
        mut self,
        progress: impl Fn(&DownloadProgress) + Send + Sync + 'static,
    ) -> Self {
        self.download.progress = Box::new(progress);
        self
    }

    /// Where the model runs; the CPU by default. A GPU needs the feature `cuda`, and memory for weights and
    /// cache: all of its free memory counts, see [`ModelBuilder::context`].
    pub fn device(self, device: DeviceName) -> Self {
        Self { device, ..self }
    }

    /// Worker threads; 0, the default, is one per available core.
    pub fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// How dense matrices are held; BF16, as stored, by default.
    pub fn dense_dtype(self, dense_dtype: DenseDtype) -> Self {
        Self { dense_dtype, ..self }
    }

    /// What products make of their activations; all of f32 by default. [`Activations::Bf16`] is for GPUs:
    /// half the work where many rows share a step, in prompts above all.
    pub fn activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// How keys and values are stored; BF16 by default.
    pub fn kv_dtype(self, kv_dtype: KvDtype) -> Self {
        Self { kv_dtype, ..self }
    }

    /// Scales of an FP8 cache, one per layer, instead of the checkpoint's own.
    pub fn kv_scales(self, scales: Vec<KvScales>) -> Self {
        Self { kv_scales: Some(scales), ..self }
    }

    /// Longest conversation in tokens, the answer included.
    ///
    /// By default the model's own limit, or less where a cache of that length would take more than half
    /// of the memory that the system says is available beside the weights (Linux; elsewhere memory is
    /// not looked at), but at least 4,096. On a GPU, the model's own limit or what fits into its free
    /// memory beside the weights and what a step needs; there a length that does not fit is an error.
    pub fn context(self, tokens: usize) -> Self {
        Self { context: Some(tokens), ..self }
    }

    /// Conversations of full length that the cache has room for at the same time; 1 by default. More
    /// can run when they are shorter. Room that is not used costs address space, not memory.
    pub fn sequences(self, sequences: usize) -> Self {
        Self { sequences, ..self }
    }

    /// Makes the cache as large as memory allows, for an engine that makes up to `max_sequences` answers at once:
    /// on a GPU, `gpu_memory_utilization` of its memory (vLLM's option of that name, 0.9 there) less what others,
    /// the weights and a step take; on the CPU, half of the memory that is available, but no more than that many
    /// conversations of full length. [`ModelBuilder::context`] is then that of one conversation, and
    /// [`ModelBuilder::sequences`] says nothing. An engine whose steps are longer than
    /// [`ModelBuilder::prefill_chunk`] needs that set, too: a step's memory is kept free.
    pub fn serving(self, max_sequences: usize, gpu_memory_utilization: f64) -> Self {
        Self { serving: Some((max_sequences, gpu_memory_utilization)), ..self }
    }

    /// Most prompt tokens that go through the model at once; 512 by default.
    pub fn prefill_chunk(self, tokens: usize) -> Self {
        Self { prefill_chunk: tokens, ..self }
    }

    /// Writes prompts with `renderer` instead of the checkpoint's chat template.
    pub fn renderer(self, renderer: Renderer) -> Self {
        Self { renderer: Some(renderer), ..self }
    }

    /// Reads all weights while loading, so that the first answer does not wait for the disk, and calls
    /// `progress` with the bytes read so far and in all; see [`Checkpoint::warm`]. For a GPU all weights
    /// are read anyway, and `progress` is called while they are copied there.
    pub fn warm(self, progress: impl FnMut(u64, u64) + Send + 'static) -> Self {
        Self { warm: Some(Box::new(progress)), ..self }
    }

    /// Loads the model. On the CPU, weights stay in their files and are read when they are first used,
    /// unless [`ModelBuilder::warm`] or [`ModelBuilder::dense_dtype`] ask for more.
    ///
    /// # Errors
    /// `Download` for a name the hub does not give; `Io`, `Config`, `Checkpoint`, `Tokenizer` or
    /// `Template` for a file that is missing or wrong; `InvalidRequest` for an option out of range and
    /// for a GPU in a build without the feature `cuda`; `Device` for a GPU that is not there, fails, or has
    /// no room for the weights.
    pub fn load(self) -> Result<Model> {
        let (checkpoint, tokenizer, generation_config, renderer) = match self.source {
            Source::Named(dir) => {
                #[cfg(feature = "hub")]
                let dir = if dir.is_dir() { dir } else { self.download.fetch(&dir)? };
                let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json"))?;
                let generation_config = GenerationConfig::from_checkpoint(&dir)?;
                let renderer = match self.renderer {
                    Some(renderer) => renderer,
                    None => Renderer::from_checkpoint(&dir)?,
                };
                (Checkpoint::open(&dir)?, tokenizer, generation_config, renderer)
            }
            Source::Parts(parts) => {
                let renderer = self.renderer.unwrap_or(Renderer::Native(Dialect::template()));
                (parts.0, parts.1, GenerationConfig::default(), renderer)
            }
        };
        let device = self.device.open()?;
        let mut warm = self.warm;
        if let Some(progress) = warm.as_mut().filter(|_| device.is_cpu()) {
            checkpoint.warm(progress);
        }
        let config = checkpoint.config();
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(Error::new(
                ErrorKind::Tokenizer,
                format!(
                    "the tokenizer has token ids up to {} but vocab_size is {}",
                    tokenizer.vocab_size() - 1,
                    config.vocab_size
                ),
            ));
        }
        let sequences = self.serving.map_or(self.sequences, |(sequences, _)| sequences);
        if let Some((_, share)) = self.serving.filter(|(_, share)| !(*share > 0.0 && *share <= 1.0))
        {
            return Err(Error::invalid_request(format!(
                "gpu_memory_utilization is {share}, expected more than 0 and at most 1"
            )));
        }
        for (name, value) in [("prefill_chunk", self.prefill_chunk), ("sequences", sequences)] {
            if value == 0 {
                return Err(Error::invalid_request(format!("{name} is 0, expected at least 1")));
            }
        }
        let kv_scales = match self.kv_scales {
            Some(scales) => Some(scales),
            None => (0..config.num_hidden_layers())
                .map(|layer| checkpoint.kv_scales(layer))
                .collect::<Result<Option<Vec<_>>>>()?,
        };
        let limit = config.max_position_embeddings;
        if let Some(context) = self.context.filter(|context| !(1..=limit).contains(context)) {
            return Err(Error::invalid_request(format!(
                "a context of {context} tokens was asked for, the model's is 1 to {limit}"
            )));
        }
        let (chunk, stored) = (self.prefill_chunk, checkpoint.total_bytes());
        let on_device = self.dense_dtype.weight_bytes(config, stored);
        let mapped = if checkpoint.files().is_empty() { 0 } else { stored };
        let room = Room { config, dtype: self.kv_dtype, chunk, sequences };
        let (asked, name) = (self.context, self.device);
        let (context, pages) = match (device_memory(&device)?, self.serving) {
            (None, None) => {
                let context = room.context_on_host(asked, mapped);
                (context, room.pages(context))
            }
            (None, Some(_)) => room.filled_on_host(asked, mapped),
            (Some(memory), None) => {
                let context = room.context_on_device(asked, on_device, memory.free, name)?;
                (context, room.pages(context))
            }
            (Some(memory), Some((_, share))) => {
                room.filled_on_device(asked, on_device, memory, share, name)?
            }
        };
        let cache = KvCacheConfig { dtype: self.kv_dtype, pages, scales: kv_scales };
        let special = tokenizer.special_tokens().ok();
        let never = special.map(|s| [s.start, s.end, s.message, s.channel, s.constrain]);
        let transformer = GptOss::new(&checkpoint, self.threads)?
            .with_dense_dtype(self.dense_dtype)
            .with_activations(self.activations)
            .on_device(&device, |done| {
                if let Some(progress) = &mut warm {
                    progress(done.min(on_device), on_device);
                }
            })?;
        let cache = KvCache::new(config, &cache, &device)?;
        Ok(Model::new(Parts {
            prefix_cache: Mutex::new(PrefixCache::new(&cache, pages)),
            cache,
            transformer,
            stop: StopTokens::new(
                tokenizer.stop_tokens(),
                &generation_config.eos_token_id,
                never.as_ref().map_or(&[], |never| never.as_slice()),
            ),
            tokenizer: Arc::new(tokenizer),
            checkpoint,
            renderer,
            generation_config,
            context,
            prefill_chunk: self.prefill_chunk,
            guidance: Guidance::default(),
        }))
    }
}

#[cfg(feature = "hub")]
impl Download {
    /// Downloads the model called `name`, and says where it is.
    fn fetch(self, name: &Path) -> Result<PathBuf> {
        let Some(name) = name.to_str() else {
            return Err(Error::invalid_request(format!(
                "{} is neither a checkpoint directory nor a model's name",
                name.display()
            )));
        };
        self.hub.download(name, &self.revision, self.progress)
    }
}
