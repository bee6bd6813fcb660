//! [`ModelConfig`]: config.json of `gpt_oss_puzzle` and `gpt_oss` checkpoints, typed and validated
//! once.
//!
//! The three published models differ only in what this file states, so nothing here is a constant:
//! layer count, experts and window per layer, and the YaRN factor (56 in Puzzle, 32 in its parents)
//! all come from the file. Unknown fields are ignored; two fields that contradict each other are an
//! error that names both. This module reads no tensors and knows nothing of candle.

mod raw;

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The architecture of one checkpoint.
///
/// Field names are those of Hugging Face's config.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ModelConfig {
    /// `gpt_oss_puzzle` or `gpt_oss`.
    pub model_type: String,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream, a multiple of 32.
    pub hidden_size: usize,
    /// Width of an expert, a multiple of 32.
    pub intermediate_size: usize,
    /// Width of one attention head.
    pub head_dim: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Experts each token is routed to.
    pub num_experts_per_tok: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Bound of the clamped SwiGLU.
    pub swiglu_limit: f64,
    /// Slope of the sigmoid in SwiGLU, 1.702 in every published model.
    pub swiglu_alpha: f64,
    /// Longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// What differs from layer to layer; its length is the number of layers.
    pub block_configs: Vec<BlockConfig>,
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockConfig {
    /// Experts of this layer.
    pub num_local_experts: usize,
    /// Positions a query sees, itself included; `None` sees every earlier position.
    pub sliding_window: Option<usize>,
}

/// Rotary position embedding with YaRN scaling (Peng et al. 2023, arXiv 2309.00071).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths.
    pub rope_theta: f64,
    /// Context extension factor; 1 leaves the frequencies alone.
    pub factor: f64,
    /// Context length before the extension, in tokens.
    pub original_max_position_embeddings: usize,
    /// Rotations over the original context above which a frequency is left alone.
    pub beta_fast: f64,
    /// Rotations over the original context below which a frequency is divided by `factor`.
    pub beta_slow: f64,
    /// Whether the ramp's ends are rounded to whole dimensions. True when config.json is silent.
    pub truncate: bool,
    /// Multiplies cosine and sine, hence the logits by its square; `0.1 ln(factor) + 1` unless
    /// stated.
    pub attention_factor: f64,
}

/// Longest config.json accepted, in bytes; the published ones are below 10 KB.
const MAX_FILE: u64 = 1 << 20;

impl ModelConfig {
    /// Reads and validates `config.json` at `path`.
    ///
    /// # Errors
    /// `Io` when the file cannot be read, otherwise as [`ModelConfig::from_json`] with the path in
    /// front.
    pub fn from_file(path: &Path) -> Result<ModelConfig> {
        let meta = path.metadata().map_err(|e| Error::io("read", path, e))?;
        if !meta.is_file() || meta.len() > MAX_FILE {
            return Err(Error::config(format!(
                "{}: expected a file of at most {MAX_FILE} bytes, found {} bytes",
                path.display(),
                meta.len()
            )));
        }
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        ModelConfig::from_json(&text)
            .map_err(|e| Error::config(format!("{}: {e}", path.display())).with_source(e))
    }

    /// Parses and validates the text of a config.json.
    ///
    /// Accepts `gpt_oss_puzzle` and `gpt_oss` as written by Hugging Face transformers 4 and 5 and
    /// by MLX converters, and the config.json of openai's `original/` folder (which names no
    /// `model_type` and means `truncate: false`).
    ///
    /// # Errors
    /// `Config` for JSON that does not parse, a missing field, fields that contradict each other,
    /// and an architecture outside this family.
    pub fn from_json(text: &str) -> Result<ModelConfig> {
        let raw: raw::Raw = serde_json::from_str(text)
            .map_err(|e| Error::config(format!("invalid JSON: {e}")).with_source(e))?;
        raw.validate()
    }

    /// Holds what [`ModelConfig::from_json`] demands of a file against a configuration made or changed
    /// by hand.
    pub(crate) fn check(&self) -> Result<()> {
        ModelConfig::from_json(&self.to_json().to_string()).map(drop)
    }

    /// Number of transformer blocks.
    pub fn num_hidden_layers(&self) -> usize {
        self.block_configs.len()
    }

    /// The config.json this configuration is read back from, in the layout of `gpt_oss_puzzle`.
    ///
    /// ```
    /// # let text = gpt_oss_puzzle::ModelConfig::puzzle_88b().to_json().to_string();
    /// let config = gpt_oss_puzzle::ModelConfig::from_json(&text)?;
    /// assert_eq!(config, gpt_oss_puzzle::ModelConfig::puzzle_88b());
    /// # Ok::<(), gpt_oss_puzzle::Error>(())
    /// ```
    pub fn to_json(&self) -> serde_json::Value {
        let experts: std::collections::BTreeSet<_> =
            self.block_configs.iter().map(|b| b.num_local_experts).collect();
        let architecture = match self.model_type.as_str() {
            "gpt_oss" => "GptOssForCausalLM",
            _ => "GptOssPuzzleForCausalLM",
        };
        let layer_types: Vec<_> = (self.block_configs.iter())
            .map(
                |b| if b.sliding_window.is_some() { "sliding_attention" } else { "full_attention" },
            )
            .collect();
        let mut json = serde_json::json!({
            "architectures": [architecture],
            "attention_bias": true,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initial_context_length": self.rope.original_max_position_embeddings,
            "intermediate_size": self.intermediate_size,
            "layer_types": layer_types,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.model_type,
            "num_attention_heads": self.num_attention_heads,
            "num_experts_per_tok": self.num_experts_per_tok,
            "num_hidden_layers": self.num_hidden_layers(),
            "num_key_value_heads": self.num_key_value_heads,
            "quantization_config": {
                "modules_to_not_convert": [
                    "model.layers.*.self_attn", "model.layers.*.mlp.router",
                    "model.embed_tokens", "lm_head",
                ],
                "quant_method": "mxfp4",
            },
            "rms_norm_eps": self.rms_norm_eps,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": self.rope.factor,
                "original_max_position_embeddings": self.rope.original_max_position_embeddings,
                "beta_fast": self.rope.beta_fast,
                "beta_slow": self.rope.beta_slow,
                "truncate": self.rope.truncate,
                "attention_factor": self.rope.attention_factor,
            },
            "rope_theta": self.rope.rope_theta,
            "swiglu_limit": self.swiglu_limit,
            "swiglu_alpha": self.swiglu_alpha,
            "tie_word_embeddings": false,
            "vocab_size": self.vocab_size,
        });
        let windows: std::collections::BTreeSet<_> =
            self.block_configs.iter().filter_map(|b| b.sliding_window).collect();
        if self.model_type == "gpt_oss" && experts.len() <= 1 && windows.len() <= 1 {
            json["num_local_experts"] = serde_json::json!(experts.first());
            json["sliding_window"] = windows.first().map_or(128, |w| *w).into();
        } else {
            json["block_configs"] = serde_json::json!(self.block_configs);
        }
        json
    }

    /// The published shape of openai/gpt-oss-20b: 24 layers of 32 experts.
    pub fn gpt_oss_20b() -> ModelConfig {
        ModelConfig::parent(24, 32)
    }

    /// The published shape of openai/gpt-oss-120b: 36 layers of 128 experts.
    pub fn gpt_oss_120b() -> ModelConfig {
        ModelConfig::parent(36, 128)
    }

    /// The shape of nvidia/gpt-oss-puzzle-88B as third-party ports report it: 36 layers, 18 of 128
    /// and 18 of 64 experts, windows of 128 and 8,192 and none. For benches and tests; a
    /// checkpoint's own config.json always wins.
    pub fn puzzle_88b() -> ModelConfig {
        const FULL: [usize; 10] = [1, 7, 9, 11, 13, 15, 17, 19, 25, 29];
        let block = |layer: usize| BlockConfig {
            num_local_experts: if layer >= 21 || [15, 17, 19].contains(&layer) { 64 } else { 128 },
            sliding_window: match layer {
                l if l % 2 == 0 => Some(128),
                l if FULL.contains(&l) => None,
                _ => Some(8192),
            },
        };
        let mut config = ModelConfig::parent(36, 128);
        config.model_type = "gpt_oss_puzzle".into();
        config.block_configs = (0..36).map(block).collect();
        config.rope.factor = 56.0;
        config.rope.truncate = true;
        config.rope.attention_factor = default_attention_factor(56.0);
        config
    }

    fn parent(layers: usize, experts: usize) -> ModelConfig {
        let block = |layer: usize| BlockConfig {
            num_local_experts: experts,
            sliding_window: layer.is_multiple_of(2).then_some(128),
        };
        ModelConfig {
            model_type: "gpt_oss".into(),
            vocab_size: 201_088,
            hidden_size: 2880,
            intermediate_size: 2880,
            head_dim: 64,
            num_attention_heads: 64,
            num_key_value_heads: 8,
            num_experts_per_tok: 4,
            rms_norm_eps: 1e-5,
            rope: RopeConfig {
                rope_theta: 150_000.0,
                factor: 32.0,
                original_max_position_embeddings: 4096,
                beta_fast: 32.0,
                beta_slow: 1.0,
                truncate: false,
                attention_factor: default_attention_factor(32.0),
            },
            swiglu_limit: 7.0,
            swiglu_alpha: 1.702,
            max_position_embeddings: 131_072,
            block_configs: (0..layers).map(block).collect(),
        }
    }
}

/// YaRN's `0.1 ln(factor) + 1` (arXiv 2309.00071, equation 22).
fn default_attention_factor(factor: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
}
