//! [`Checkpoint`]: a tensor by its Hugging Face name, with dtype and shape checked before use.
//!
//! Sits between files and model: `safetensors` maps shards and hands out bytes, `layout` knows
//! which tensors a configuration needs and what each publisher calls them, `random` makes weights
//! without files. Weights stay as stored: experts are never decoded or copied here. This module
//! knows nothing of candle, tokens or arithmetic.

#[cfg(feature = "hub")]
mod hub;
mod json;
mod kv_scales;
mod layout;
mod random;
#[allow(unsafe_code)]
mod safetensors;
mod shards;
mod tiny;

#[cfg(feature = "hub")]
pub use hub::{DownloadProgress, Hub};
pub use kv_scales::KvScales;
pub use layout::Layout;
pub use safetensors::StoredTensor;
pub use tiny::{tiny_config, write_tiny_checkpoint};

use crate::{Error, ModelConfig, Result};
use ::safetensors::Dtype;
use half::{bf16, f16};
use layout::{Required, Stored};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What [`Checkpoint::warm`] reads between two reports, and how many reads are under way.
const WARM_PIECE: usize = 64 << 20;
const WARM_THREADS: usize = 8;
/// The smallest page of any system this runs on.
const PAGE_BYTES: usize = 4096;

/// A checkpoint directory, opened and checked; tensors stay in the mapped files.
///
/// Every tensor the configuration needs is present with the right dtype and shape once
/// [`Checkpoint::open`] has returned. Tensors that are not needed are ignored.
pub struct Checkpoint {
    config: ModelConfig,
    layout: Layout,
    files: Vec<PathBuf>,
    /// By the name the layout gives them.
    tensors: BTreeMap<String, StoredTensor>,
    kv_scales: Vec<Option<KvScales>>,
}

/// The experts of one projection of one layer, as stored.
#[derive(Clone, Debug)]
pub enum ExpertTensors {
    /// `*_blocks` `[E, rows, cols/32, 16]` and `*_scales` `[E, rows, cols/32]`.
    Mxfp4 {
        /// Packed nibbles.
        blocks: StoredTensor,
        /// E8M0 exponents.
        scales: StoredTensor,
    },
    /// `[E, cols, rows]` bf16.
    Bf16(StoredTensor),
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("layout", &self.layout)
            .field("files", &self.files)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens a checkpoint directory: maps its shards and checks every tensor its config.json needs.
    ///
    /// Reads the layouts of [`Layout`]; a directory without weights but with an `original/` folder
    /// is read from there. Weights are not read, so this takes milliseconds whatever their size.
    ///
    /// # Errors
    /// `Config` for config.json, `Io` for a file that cannot be read, otherwise `Checkpoint` with
    /// the file, the tensor, what was expected and what was found.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let root = shards::root(dir)?;
        let config = ModelConfig::from_file(&root.join("config.json"))?;
        let (files, tensors) = shards::open(&root)?;
        let checkpoint = Checkpoint::from_tensors(config, files, tensors)
            .map_err(|e| Error::new(e.kind(), format!("{}: {e}", root.display())).with_source(e))?;
        tracing::debug!(
            layout = ?checkpoint.layout, files = checkpoint.files.len(), bytes = checkpoint.total_bytes(),
            "opened {}", root.display()
        );
        Ok(checkpoint)
    }

    /// Random weights in memory, in the layout of [`Layout::HfMxfp4`] and, for `gpt_oss_puzzle`,
    /// with KV scales; the same for the same seed, whatever the number of threads.
    ///
    /// Values are uniform, scaled so that activations, attention scores and the router's logits
    /// stay of order one. Weights are made in place: no second copy exists at any time.
    ///
    /// # Errors
    /// `Config` for a configuration that [`ModelConfig::from_json`] would refuse in a file, and when
    /// the sizes do not fit into memory addresses.
    pub fn random(config: &ModelConfig, seed: u64) -> Result<Checkpoint> {
        config.check()?;
        let tensors = random::tensors(config, seed)?;
        Checkpoint::from_tensors(config.clone(), Vec::new(), tensors)
    }

    /// As [`Checkpoint::random`], but tensors of one distribution share their numbers, so that it takes
    /// the memory of the largest of each: for measuring speed on a device, where a copy of each arrives.
    ///
    /// # Errors
    /// As [`Checkpoint::random`].
    pub fn random_repeating(config: &ModelConfig, seed: u64) -> Result<Checkpoint> {
        config.check()?;
        let tensors = random::repeating(config, seed)?;
        Checkpoint::from_tensors(config.clone(), Vec::new(), tensors)
    }

    fn from_tensors(
        config: ModelConfig,
        files: Vec<PathBuf>,
        tensors: BTreeMap<String, StoredTensor>,
    ) -> Result<Checkpoint> {
        let layout = Layout::of(&tensors)?;
        let mut checkpoint = Checkpoint { config, layout, files, tensors, kv_scales: Vec::new() };
        let mut needed = 0;
        for required in layout::outer(&checkpoint.config) {
            needed += checkpoint.check(&required)?;
        }
        for layer in 0..checkpoint.config.num_hidden_layers() {
            for required in layout::layer(&checkpoint.config, layout, layer) {
                needed += checkpoint.check(&required)?;
            }
            let prefix = layout.attention_prefix(layer);
            let scales = kv_scales::find(&checkpoint.tensors, &prefix)?;
            needed += 2 * usize::from(scales.is_some());
            checkpoint.kv_scales.push(scales);
        }
        if kv_scales::has_q_scale(&checkpoint.tensors) {
            tracing::warn!("ignoring q_scale: queries are not quantised");
        }
        tracing::debug!("{} tensors, {needed} needed", checkpoint.tensors.len());
        Ok(checkpoint)
    }

    /// Checks one needed tensor and aligns it; the number of stored tensors it stands for.
    fn check(&mut self, required: &Required) -> Result<usize> {
        let Required { name, shape, stored, .. } = required;
        self.tensor(name, shape, *stored)?;
        let (name, rows) = self.layout.stored(name, &self.config);
        if let Some(tensor) = self.tensors.get_mut(&name)
            && tensor.dtype() == Dtype::BF16
        {
            *tensor = tensor.clone().aligned();
        }
        // A fused tensor is counted by its first part.
        Ok(usize::from(rows.is_none_or(|(rows, _)| rows.start == 0)))
    }

    /// The tensor `name` of exactly this shape, in a dtype `stored` accepts.
    fn tensor(&self, name: &str, shape: &[usize], stored: Stored) -> Result<StoredTensor> {
        let (name, rows) = self.layout.stored(name, &self.config);
        let mut whole = shape.to_vec();
        if let (Some((_, total)), Some(first)) = (&rows, whole.first_mut()) {
            *first = *total;
        }
        let expected =
            || format!("tensor {}: expected {} {whole:?}", shown(&name), stored.expected());
        let Some(tensor) = self.tensors.get(&name) else {
            return Err(Error::checkpoint(format!("{}, found none", expected())));
        };
        if !stored.accepts(tensor.dtype()) || tensor.shape() != whole {
            return Err(Error::checkpoint(format!(
                "{}, found {} {:?} in {}",
                expected(),
                tensor.dtype(),
                tensor.shape(),
                tensor.file().display(),
            )));
        }
        match rows {
            None => Ok(tensor.clone()),
            Some((rows, _)) if shape.first() == Some(&rows.len()) => Ok(tensor.rows(rows)),
            Some((rows, _)) => Err(Error::checkpoint(format!(
                "{}: rows {rows:?} of it are not {shape:?}",
                expected()
            ))),
        }
    }

    /// What config.json says.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How the weights are stored.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The mapped shards; empty for weights made in memory.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.bytes().len() as u64).sum()
    }

    /// Reads all weights once, file by file, on several threads, so that the first tokens do not wait for
    /// the disk. Calls `progress` with the bytes read so far and in all. Of weights larger than memory
    /// the system keeps what it can; then this is time lost.
    pub fn warm(&self, mut progress: impl FnMut(u64, u64)) {
        let mut tensors: Vec<&StoredTensor> = self.tensors.values().collect();
        tensors.sort_by_key(|tensor| (tensor.file().to_owned(), tensor.bytes().as_ptr()));
        let (mut done, total) = (0, self.total_bytes());
        for piece in tensors.iter().flat_map(|tensor| tensor.bytes().chunks(WARM_PIECE)) {
            std::thread::scope(|scope| {
                for part in piece.chunks(WARM_PIECE.div_ceil(WARM_THREADS)) {
                    scope.spawn(move || {
                        let pages = part.iter().step_by(PAGE_BYTES);
                        std::hint::black_box(
                            pages.fold(0, |sum: u8, byte| sum.wrapping_add(*byte)),
                        );
                    });
                }
            });
            done += piece.len() as u64;
            progress(done, total);
        }
    }

    /// A BF16 tensor by its Hugging Face name, in every layout: in openai's, `q_proj`, `k_proj` and
    /// `v_proj` are row ranges of the fused `qkv`, not copies.
    ///
    /// # Errors
    /// `Checkpoint` when the tensor is missing, is not BF16 or has another shape.
    pub fn bf16(&self, name: &str, shape: &[usize]) -> Result<StoredTensor> {
        Ok(self.tensor(name, shape, Stored::Matrix)?.aligned())
    }

    /// A small tensor (norm, bias, sinks) in BF16, F16 or F32, widened to f32.
    ///
    /// # Errors
    /// `Checkpoint` when the tensor is missing, has another dtype or shape, or holds a value that
    /// is not finite.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.tensor(name, shape, Stored::Vector)?;
        let (stored, part) = self.layout.stored(name, &self.config);
        let before =
            part.map_or(0, |(rows, _)| shape.iter().skip(1).fold(rows.start, |n, d| n * d));
        widen(&tensor, &stored, before)
    }

    /// The experts of `layer`: `projection` is `gate_up_proj` or `down_proj`, each of the layer's E
    /// matrices is `[rows, cols]` = `[out, in]`.
    ///
    /// # Errors
    /// `Checkpoint` when a tensor is missing or has another dtype or shape; `InvalidRequest` for a
    /// layer or projection this family does not have.
    pub fn experts(
        &self,
        layer: usize,
        projection: &str,
        rows: usize,
        cols: usize,
    ) -> Result<ExpertTensors> {
        let Some(block) = self.config.block_configs.get(layer) else {
            let layers = self.config.num_hidden_layers();
            return Err(Error::invalid_request(format!("layer {layer} of {layers} layers")));
        };
        if !["gate_up_proj", "down_proj"].contains(&projection) || !cols.is_multiple_of(32) {
            return Err(Error::invalid_request(format!(
                "experts {} of {cols} columns, expected gate_up_proj or down_proj of a multiple of 32",
                shown(projection)
            )));
        }
        let e = block.num_local_experts;
        let name = format!("model.layers.{layer}.mlp.experts.{projection}");
        if self.layout == Layout::HfBf16 {
            return Ok(ExpertTensors::Bf16(self.bf16(&name, &[e, cols, rows])?));
        }
        let shape = [e, rows, cols / 32, 16];
        Ok(ExpertTensors::Mxfp4 {
            blocks: self.tensor(&format!("{name}_blocks"), &shape, Stored::Bytes)?,
            scales: self.tensor(&format!("{name}_scales"), &shape[..3], Stored::Bytes)?,
        })
    }

    /// The calibrated scales of `layer`'s FP8 key-value cache, `None` when the checkpoint has none.
    ///
    /// # Errors
    /// `InvalidRequest` for a layer this checkpoint does not have; wrong scales were refused by
    /// [`Checkpoint::open`].
    pub fn kv_scales(&self, layer: usize) -> Result<Option<KvScales>> {
        let layers = self.kv_scales.len();
        (self.kv_scales.get(layer).copied())
            .ok_or_else(|| Error::invalid_request(format!("layer {layer} of {layers} layers")))
    }

    /// The first MXFP4 scale that is 255, E8M0's NaN: where it is, for a message.
    ///
    /// Reads every scale, gigabytes for the large models, so [`Checkpoint::open`] does not: ask
    /// this once logits turn out not to be finite.
    pub fn find_nan_scale(&self) -> Option<String> {
        let scales = |name: &str| name.ends_with("_scales") || name.ends_with("_weight.scales");
        self.tensors.iter().filter(|(name, _)| scales(name)).find_map(|(name, tensor)| {
            let mut at = tensor.bytes().iter().position(|scale| *scale == u8::MAX)?;
            let mut index = vec![0; tensor.shape().len()];
            for (index, size) in index.iter_mut().zip(tensor.shape()).rev() {
                (*index, at) = (at % size, at / size);
            }
            let file = tensor.file().display();
            Some(format!("tensor {}: scale {index:?} is 255 (NaN) in {file}", shown(name)))
        })
    }
}

/// The elements of a float tensor in f32, every one finite. For messages: its name in the file, and how
/// many elements of it come before these.
fn widen(tensor: &StoredTensor, name: &str, before: usize) -> Result<Vec<f32>> {
    let bytes = tensor.bytes();
    let values: Vec<f32> = match tensor.dtype() {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
    };
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(at) => Err(Error::checkpoint(format!(
            "tensor {}: element {} is {}, expected finite numbers, in {}",
            shown(name),
            before + at,
            values[at],
            tensor.file().display()
        ))),
    }
}

/// A name from a file, fit for a message: quoted, escaped and cut at 200 characters.
fn shown(name: &str) -> String {
    let mut text: String = name.chars().take(200).flat_map(char::escape_debug).collect();
    if name.chars().nth(200).is_some() {
        text.push('…');
    }
    format!("`{text}`")
}
