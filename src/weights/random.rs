//! Weights without files: random tensors made in place, and a writer of the published layout.

use super::layout::{self, Layout, Required, Stored};
use super::safetensors::StoredTensor;
use super::{Checkpoint, json, shown, tiny};
use crate::{Error, ModelConfig, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Vocabulary of the published models, o200k_harmony.
const HARMONY_VOCAB: usize = 201_088;

/// Words filled from one stream of random numbers, so that the result does not depend on the
/// threads.
const CHUNK: usize = 1 << 17;

/// Every tensor of `config` in the MXFP4 layout.
pub(super) fn tensors(config: &ModelConfig, seed: u64) -> Result<BTreeMap<String, StoredTensor>> {
    let mut tensors = BTreeMap::new();
    for (stream, required) in required(config)?.into_iter().enumerate() {
        let tensor = make(&required, child(seed, stream))?;
        tensors.insert(required.name, tensor);
    }
    add_kv_scales(&mut tensors, config, seed);
    Ok(tensors)
}

/// The same, but what has one distribution has one source: each tensor is a piece of it, and begins
/// [`SHIFT`] bytes behind the one before.
pub(super) fn repeating(config: &ModelConfig, seed: u64) -> Result<BTreeMap<String, StoredTensor>> {
    let required = required(config)?;
    let kind = |required: &Required| {
        let Required { name, stored, mean, std, .. } = required;
        (*stored, name.ends_with("_scales"), *mean, *std)
    };
    let mut sources: Vec<(&Required, StoredTensor)> = Vec::new();
    let mut tensors = BTreeMap::new();
    for (index, one) in required.iter().enumerate() {
        if !sources.iter().any(|(first, _)| kind(first) == kind(one)) {
            let mut most = 0;
            for other in required.iter().filter(|other| kind(other) == kind(one)) {
                most = most.max(words(other)?.1 * 8);
            }
            let size = words(one)?.0.bitsize() / 8;
            let shape = vec![(most + required.len() * SHIFT).div_ceil(size)];
            let whole = Required { name: one.name.clone(), shape, ..*one };
            sources.push((one, make(&whole, child(seed, index))?));
        }
        let source = sources.iter().find(|(first, _)| kind(first) == kind(one));
        let (_, source) = source.expect("made above");
        tensors.insert(one.name.clone(), source.piece(index * SHIFT, &one.shape));
    }
    add_kv_scales(&mut tensors, config, seed);
    Ok(tensors)
}

/// Every tensor of `config`, none of a size that cannot be.
fn required(config: &ModelConfig) -> Result<Vec<Required>> {
    let mut required = layout::outer(config);
    for layer in 0..config.num_hidden_layers() {
        required.extend(layout::layer(config, Layout::HfMxfp4, layer));
    }
    required.iter().try_for_each(|required| words(required).map(drop))?;
    Ok(required)
}

/// The scales of an FP8 cache, which Puzzle has.
fn add_kv_scales(tensors: &mut BTreeMap<String, StoredTensor>, config: &ModelConfig, seed: u64) {
    if config.model_type == "gpt_oss_puzzle" {
        for layer in 0..config.num_hidden_layers() {
            let mut rng = SplitMix(child(!seed, layer));
            for letter in ["k", "v"] {
                // Around amax/448 for keys and values of order one.
                let scale = 0.008 + 0.008 * (rng.next() >> 40) as f32 / (1 << 24) as f32;
                let words = vec![scale.to_bits() as u64];
                let name = format!("model.layers.{layer}.self_attn.{letter}_scale");
                tensors.insert(name, StoredTensor::from_words(words, Dtype::F32, &[]));
            }
        }
    }
}

/// Bytes between the beginnings of tensors that share their numbers, so that no two are equal.
const SHIFT: usize = 64;

/// What one random tensor is made of and how many words it takes.
fn words(required: &Required) -> Result<(Dtype, usize)> {
    let Required { name, shape, stored, .. } = required;
    let dtype = if *stored == Stored::Bytes { Dtype::U8 } else { Dtype::BF16 };
    let bytes = (shape.iter().try_fold(dtype.bitsize() / 8, |n, d| n.checked_mul(*d)))
        .filter(|bytes| *bytes <= isize::MAX as usize - 8)
        .ok_or_else(|| Error::config(format!("tensor {} {shape:?} overflows", shown(name))))?;
    Ok((dtype, bytes.div_ceil(8)))
}

/// One random tensor.
fn make(required: &Required, seed: u64) -> Result<StoredTensor> {
    let (dtype, words) = words(required)?;
    let Required { name, shape, stored, mean, std } = required;
    let mut words = vec![0u64; words];
    if *stored != Stored::Bytes {
        // Uniform over mean ± width/2: the standard deviation is width/√12. Adding half of the last
        // place before cutting rounds to bf16; inlined by hand because this runs a billion times.
        let step = 12f32.sqrt() * std / 65536.0;
        let value = |bits: u64| {
            let value = mean + (bits as u16 as f32 - 32767.5) * step;
            u64::from(value.to_bits().wrapping_add(0x8000) >> 16)
        };
        fill(&mut words, seed, |word| {
            value(word)
                | value(word >> 16) << 16
                | value(word >> 32) << 32
                | value(word >> 48) << 48
        });
    } else if name.ends_with("_scales") {
        // A uniform FP4 code has a root mean square of 2.92, exponents that vary by one to either
        // side one of 1.32.
        let centre = (127.0 + (std / (2.92 * 1.32)).log2()).round() as u64;
        let exponent = |byte: u64| centre - 1 + ((byte * 3) >> 8);
        fill(&mut words, seed, |word| {
            (0..64).step_by(8).fold(0, |out, s| out | exponent(word >> s & 0xff) << s)
        });
    } else {
        fill(&mut words, seed, |word| word);
    }
    Ok(StoredTensor::from_words(words, dtype, shape))
}

/// Replaces each word by `map` of a random one, on all cores.
fn fill(words: &mut [u64], seed: u64, map: impl Fn(u64) -> u64 + Sync) {
    let threads = match words.len() > CHUNK {
        true => std::thread::available_parallelism().map_or(1, |n| n.get()),
        false => 1,
    };
    let work = |part: &mut [u64], first_chunk: usize| {
        for (chunk, words) in part.chunks_mut(CHUNK).enumerate() {
            let mut rng = SplitMix(child(seed, first_chunk + chunk));
            words.iter_mut().for_each(|word| *word = map(rng.next()));
        }
    };
    let chunks_each = words.len().div_ceil(CHUNK).div_ceil(threads).max(1);
    if threads == 1 {
        return work(words, 0);
    }
    std::thread::scope(|scope| {
        for (part, words) in words.chunks_mut(chunks_each * CHUNK).enumerate() {
            scope.spawn(move || work(words, part * chunks_each));
        }
    });
}

/// SplitMix64 (Steele, Lea and Flood 2014, <https://doi.org/10.1145/2660193.2660195>).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The seed of stream `number` of those that belong to `seed`.
fn child(seed: u64, number: usize) -> u64 {
    SplitMix(SplitMix(seed).next().wrapping_add(number as u64)).next()
}

impl Checkpoint {
    /// Writes the checkpoint to `dir` as the published ones are: config.json,
    /// generation_config.json, shards of at most `max_shard_bytes` (one tensor at least) and their
    /// index.
    ///
    /// Each file is written beside its final name and renamed, the index last. The end-of-sequence
    /// tokens are o200k_harmony's for its vocabulary of 201,088, else those of
    /// [`write_tiny_checkpoint`](super::write_tiny_checkpoint)'s tokenizer.
    ///
    /// # Errors
    /// `Io` when a file cannot be written; `InvalidRequest` unless the layout is
    /// [`Layout::HfMxfp4`].
    pub fn save(&self, dir: &Path, max_shard_bytes: u64) -> Result<()> {
        if self.layout != Layout::HfMxfp4 {
            return Err(Error::invalid_request(format!(
                "a checkpoint in the layout {:?} cannot be saved, only HfMxfp4",
                self.layout
            )));
        }
        std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        let mut shards: Vec<Vec<(&str, TensorView)>> = vec![Vec::new()];
        let mut shard_bytes = 0;
        for (name, tensor) in &self.tensors {
            let bytes = tensor.bytes().len() as u64;
            if shard_bytes > 0 && shard_bytes + bytes > max_shard_bytes {
                shards.push(Vec::new());
                shard_bytes = 0;
            }
            shard_bytes += bytes;
            let view = TensorView::new(tensor.dtype(), tensor.shape().to_vec(), tensor.bytes())
                .map_err(|e| Error::checkpoint(format!("tensor {}: {e}", shown(name))))?;
            shards.last_mut().into_iter().for_each(|shard| shard.push((name, view.clone())));
        }
        let last = shards.len() - 1;
        let mut weight_map = serde_json::Map::new();
        for (number, shard) in shards.into_iter().enumerate() {
            // Numbered as openai's files are: from zero, of the last.
            let file = format!("model-{number:05}-of-{last:05}.safetensors");
            weight_map
                .extend(shard.iter().map(|(name, _)| (name.to_string(), file.as_str().into())));
            let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
            let path = dir.join(file);
            safetensors::serialize_to_file(shard, Some(metadata), &path).map_err(|e| {
                let message = format!("cannot write {}: {e}", path.display());
                Error::new(crate::ErrorKind::Io, message).with_source(e)
            })?;
        }
        write_json(dir, "config.json", &self.config.to_json())?;
        let vocab = self.config.vocab_size;
        let special =
            |id: usize| if vocab == HARMONY_VOCAB { id } else { tiny::special_id(vocab, id) };
        let generation = serde_json::json!({
            "bos_token_id": special(199_998),
            "do_sample": true,
            "eos_token_id": [special(200_002), special(199_999), special(200_012)],
            "pad_token_id": special(199_999),
        });
        write_json(dir, "generation_config.json", &generation)?;
        let index = serde_json::json!({
            "metadata": { "total_size": self.total_bytes() },
            "weight_map": weight_map,
        });
        write_json(dir, "model.safetensors.index.json", &index)
    }
}

/// Writes `dir/name`, indented.
pub(super) fn write_json(dir: &Path, name: &str, value: &serde_json::Value) -> Result<()> {
    json::write(&dir.join(name), &format!("{value:#}\n"))
}
