//! A small checkpoint as plain values, to be edited into every layout and every kind of damage.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use gpt_oss_puzzle::weights::Checkpoint;
use gpt_oss_puzzle::{BlockConfig, ModelConfig};
use half::bf16;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn new(dtype: &str, shape: &[usize], bytes: impl Into<Vec<u8>>) -> Tensor {
        Tensor { dtype: dtype.into(), shape: shape.into(), bytes: bytes.into() }
    }
}

/// What will be written: config.json, tensors, which shard holds which.
#[derive(Clone)]
pub struct Draft {
    pub config: Value,
    pub tensors: BTreeMap<String, Tensor>,
    /// Number of shards; one shard is `model.safetensors` without an index.
    pub shards: usize,
}

/// Two layers of 4 and 2 experts, everything as narrow as allowed.
pub fn small_config() -> ModelConfig {
    let mut config = ModelConfig::puzzle_88b();
    config.vocab_size = 24;
    config.hidden_size = 32;
    config.intermediate_size = 64;
    config.head_dim = 16;
    config.num_attention_heads = 4;
    config.num_key_value_heads = 2;
    config.num_experts_per_tok = 2;
    config.block_configs = vec![
        BlockConfig { num_local_experts: 4, sliding_window: Some(8) },
        BlockConfig { num_local_experts: 2, sliding_window: None },
    ];
    config
}

impl Draft {
    /// Random weights, read back by the safetensors library, which shares nothing with the reader
    /// under test.
    pub fn new(seed: u64) -> Draft {
        let dir = tempfile::tempdir().unwrap();
        Checkpoint::random(&small_config(), seed).unwrap().save(dir.path(), u64::MAX).unwrap();
        Draft { shards: 2, ..Draft::read(dir.path()) }
    }

    /// A checkpoint of one shard.
    pub fn read(dir: &Path) -> Draft {
        let bytes = std::fs::read(dir.join("model-00000-of-00000.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |(name, view): (&str, safetensors::tensor::TensorView)| {
            (name.into(), Tensor::new(&view.dtype().to_string(), view.shape(), view.data()))
        };
        let tensors = tensors.iter().map(tensor).collect();
        let config = std::fs::read(dir.join("config.json")).unwrap();
        Draft { config: serde_json::from_slice(&config).unwrap(), tensors, shards: 1 }
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.get_mut(name).unwrap_or_else(|| panic!("no {name}"))
    }

    pub fn put(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: impl Into<Vec<u8>>) {
        self.tensors.insert(name.into(), Tensor::new(dtype, shape, bytes));
    }

    /// Renames every tensor `f` gives a new name.
    pub fn rename(&mut self, f: impl Fn(&str) -> String) {
        let tensors = std::mem::take(&mut self.tensors);
        self.tensors = tensors.into_iter().map(|(name, tensor)| (f(&name), tensor)).collect();
    }

    pub fn shard_name(&self, shard: usize) -> String {
        match self.shards {
            1 => "model.safetensors".into(),
            n => format!("model-{shard:05}-of-{:05}.safetensors", n - 1),
        }
    }

    pub fn write(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        let mut weight_map = Map::new();
        for shard in 0..self.shards {
            let name = self.shard_name(shard);
            // Round robin, so that blocks and scales of one projection are never in one shard.
            let part = || self.tensors.iter().skip(shard).step_by(self.shards);
            part().for_each(|(tensor, _)| drop(weight_map.insert(tensor.clone(), json!(name))));
            std::fs::write(dir.join(&name), shard_bytes(part())).unwrap();
        }
        if self.shards > 1 {
            let index = json!({ "metadata": {}, "weight_map": weight_map });
            std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
    }
}

/// A safetensors file.
pub fn shard_bytes<'a>(tensors: impl Iterator<Item = (&'a String, &'a Tensor)>) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, tensor) in tensors {
        let begin = data.len();
        data.extend(&tensor.bytes);
        let Tensor { dtype, shape, .. } = tensor;
        let offsets = [begin, data.len()];
        header.insert(
            name.clone(),
            json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }),
        );
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    file_of(&header, &data)
}

/// A safetensors file of this header and these bytes.
pub fn file_of(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// Header and data of a safetensors file.
pub fn parts_of(file: &[u8]) -> (Value, Vec<u8>) {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&file[8..8 + length]).unwrap(), file[8 + length..].to_vec())
}

/// The value of one element of an expert, decoded by the formula.
pub fn decoded(blocks: &[u8], scales: &[u8], at: usize) -> f32 {
    const FP4: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let nibble = blocks[at / 2] >> (at % 2 * 4) & 15;
    let sign = if nibble < 8 { 1.0 } else { -1.0 };
    sign * FP4[nibble as usize % 8] * (scales[at / 32] as f32 - 127.0).exp2()
}

/// The same weights with the experts dequantised and transposed.
pub fn dequantised(draft: &Draft) -> Draft {
    let mut dense = draft.clone();
    for (name, blocks) in &draft.tensors {
        let Some(base) = name.strip_suffix("_blocks") else { continue };
        let scales = &draft.tensors[&format!("{base}_scales")];
        let [e, rows, cols] = [blocks.shape[0], blocks.shape[1], blocks.shape[2] * 32];
        let mut bytes = Vec::new();
        for expert in 0..e {
            for (col, row) in (0..cols).flat_map(|c| (0..rows).map(move |r| (c, r))) {
                let at = (expert * rows + row) * cols + col;
                bytes.extend(
                    bf16::from_f32(decoded(&blocks.bytes, &scales.bytes, at)).to_le_bytes(),
                );
            }
        }
        dense.tensors.remove(name);
        dense.tensors.remove(&format!("{base}_scales"));
        dense.put(base, "BF16", &[e, cols, rows], bytes);
    }
    dense.config.as_object_mut().unwrap().remove("quantization_config");
    dense
}

/// The same weights as openai's `original/` folder has them.
pub fn original(draft: &Draft) -> Draft {
    let mut original = draft.clone();
    for layer in 0..2 {
        for part in ["weight", "bias"] {
            let parts = ["q", "k", "v"].map(|p| {
                let name = format!("model.layers.{layer}.self_attn.{p}_proj.{part}");
                original.tensors.remove(&name).unwrap()
            });
            let mut fused = parts[0].clone();
            fused.shape[0] = parts.iter().map(|p| p.shape[0]).sum();
            fused.bytes = parts.iter().flat_map(|p| p.bytes.clone()).collect();
            original.tensors.insert(format!("block.{layer}.attn.qkv.{part}"), fused);
        }
    }
    original.rename(|name| {
        [
            ("model.embed_tokens.weight", "embedding.weight"),
            ("lm_head.weight", "unembedding.weight"),
            ("model.norm.weight", "norm.scale"),
            ("model.layers.", "block."),
            ("input_layernorm.weight", "attn.norm.scale"),
            ("post_attention_layernorm.weight", "mlp.norm.scale"),
            ("self_attn.o_proj", "attn.out"),
            ("self_attn.", "attn."),
            ("mlp.router", "mlp.gate"),
            ("mlp.experts.gate_up_proj_b", "mlp.mlp1_b"),
            ("mlp.experts.down_proj_b", "mlp.mlp2_b"),
            ("mlp1_blocks", "mlp1_weight.blocks"),
            ("mlp2_blocks", "mlp2_weight.blocks"),
            ("mlp.experts.gate_up_proj_scales", "mlp.mlp1_weight.scales"),
            ("mlp.experts.down_proj_scales", "mlp.mlp2_weight.scales"),
        ]
        .iter()
        .fold(name.to_string(), |name, (hf, openai)| name.replace(hf, openai))
    });
    original
}
