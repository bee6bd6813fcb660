//! The trained model as a checkpoint in the published layout.

use crate::batches;
use crate::model::{FlatBatch, Mode, TinyModel};
use crate::mxfp4;
use crate::world::{self, Rng, Split, Task};
use candle_core::DType;
use gpt_oss_puzzle::tokenizer::Tokenizer;
use gpt_oss_puzzle::weights::Checkpoint;
use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;

/// Sequences the scales of the key-value cache are calibrated on.
const CALIBRATION: usize = 400;
const SHARD_BYTES: u64 = 2 << 20;

/// One stored tensor.
type Stored = (String, Dtype, Vec<usize>, Vec<u8>);

/// Writes everything a checkpoint directory has to `dir`.
pub fn write(
    model: &TinyModel,
    tokenizer_json: &Value,
    tokenizer: &Tokenizer,
    seed: u64,
    dir: &Path,
) -> Result<(), Box<dyn Error>> {
    let mut tensors = tensors(model)?;
    for (layer, max) in calibrate(model, tokenizer, seed)?.into_iter().enumerate() {
        for (letter, max) in ["k", "v"].into_iter().zip(max) {
            let name = format!("model.layers.{layer}.self_attn.{letter}_scale");
            tensors.push((name, Dtype::F32, vec![], kv_scale(max).to_le_bytes().to_vec()));
        }
    }
    // As one plain file first: the crate itself then writes the shards, their index, config.json and
    // generation_config.json.
    let plain = tempfile::tempdir()?;
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>()?;
    safetensors::serialize_to_file(views, None, &plain.path().join("model.safetensors"))?;
    std::fs::write(plain.path().join("config.json"), model.config.to_json().to_string())?;
    Checkpoint::open(plain.path())?.save(dir, SHARD_BYTES)?;

    std::fs::write(dir.join("tokenizer.json"), tokenizer_json.to_string())?;
    let settings = json!({
        "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": false,
        "eos_token": "<|return|>",
        "model_max_length": model.config.max_position_embeddings,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    std::fs::write(dir.join("tokenizer_config.json"), format!("{settings:#}\n"))?;
    let template = include_str!("../../src/harmony/template.jinja");
    std::fs::write(dir.join("chat_template.jinja"), template)?;
    // So small a model is at its best when it does not gamble.
    let path = dir.join("generation_config.json");
    let mut generation: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    generation["do_sample"] = false.into();
    std::fs::write(path, format!("{generation:#}\n"))?;
    Ok(())
}

/// Experts as MXFP4, everything else as BF16, under the published names.
fn tensors(model: &TinyModel) -> candle_core::Result<Vec<Stored>> {
    let mut tensors: Vec<Stored> = Vec::new();
    for (name, var) in &model.parameters {
        let shape = var.dims().to_vec();
        if name.ends_with("_proj") {
            let (blocks, scales) = mxfp4::encode(&var.flatten_all()?.to_vec1()?);
            let [experts, rows, width] = shape[..] else { candle_core::bail!("{name}: {shape:?}") };
            let per_row = width / mxfp4::BLOCK;
            let blocks_shape = vec![experts, rows, per_row, mxfp4::BLOCK / 2];
            tensors.push((format!("{name}_blocks"), Dtype::U8, blocks_shape, blocks));
            tensors.push((
                format!("{name}_scales"),
                Dtype::U8,
                vec![experts, rows, per_row],
                scales,
            ));
        } else {
            let numbers = var.flatten_all()?.to_dtype(DType::BF16)?.to_vec1::<bf16>()?;
            let bytes = numbers.into_iter().flat_map(bf16::to_le_bytes).collect();
            tensors.push((name.clone(), Dtype::BF16, shape, bytes));
        }
    }
    Ok(tensors)
}

/// The largest key and value of each layer over exercises of every kind.
fn calibrate(
    model: &TinyModel,
    tokenizer: &Tokenizer,
    seed: u64,
) -> Result<Vec<[f32; 2]>, Box<dyn Error>> {
    let mut rng = Rng::new(!seed);
    let mode = Mode { mxfp4: model.mxfp4_errors()?, kv_max: true };
    let mut largest = vec![[0f32; 2]; model.config.num_hidden_layers()];
    for i in 0..CALIBRATION {
        let task = match i % 8 {
            0 => Task::Facts,
            1 => Task::Addition { digits: 3 },
            2 => Task::Subtraction { digits: 3 },
            3 | 4 => Task::Tools,
            5 => Task::Unknown,
            6 => Task::Greeting,
            _ => Task::Needle { tokens: 100 + 8 * (i / 8) * (i / 8) / 12 },
        };
        let exercise = world::exercise(task, Split::Train, &mut rng);
        let (mut sequence, turn) = batches::tokens(&exercise, tokenizer)?;
        sequence.extend(turn);
        let batch = FlatBatch { lengths: vec![sequence.len()], tokens: sequence, rows: vec![0] };
        let forward = model.forward(&batch, &mode)?;
        for (largest, max) in largest.iter_mut().zip(forward.kv_max) {
            *largest = [largest[0].max(max[0]), largest[1].max(max[1])];
        }
    }
    Ok(largest)
}

/// `2^⌈log2(max / 448)⌉` (arXiv 2602.11937, section 3: max calibration, rounded up to a power of two;
/// 448 is E4M3's largest number).
pub fn kv_scale(max: f32) -> f32 {
    (max / 448.0).log2().ceil().exp2()
}
