//! [`ModelConfig`]: config.json of `gpt_oss_puzzle` and `gpt_oss` checkpoints, typed and validated
//! once.
//!
//! The three published models differ only in what this file states, so nothing here is a constant:
//! layer count, experts and window per layer, and the YaRN factor (56 in Puzzle, 32 in its parents)
//! all come from the file. Unknown fields are ignored; two fields that contradict each other are an
//! error that names both. This module reads no tensors and knows nothing of candle.

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

/// config.json as it may be spelled: the Hugging Face layout and openai's `original/` one.
#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    head_dim: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    num_hidden_layers: Option<usize>,
    #[serde(alias = "num_experts")]
    num_local_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    experts_per_token: Option<usize>,
    sliding_window: Option<usize>,
    layer_types: Option<Vec<String>>,
    block_configs: Option<Vec<RawBlock>>,
    rms_norm_eps: Option<f64>,
    swiglu_limit: Option<f64>,
    swiglu_alpha: Option<f64>,
    max_position_embeddings: Option<usize>,
    initial_context_length: Option<usize>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    yarn_rope_scaling: Option<RawRope>,
    rope_scaling_factor: Option<f64>,
    rope_ntk_alpha: Option<f64>,
    rope_ntk_beta: Option<f64>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
}

#[derive(Deserialize)]
struct RawBlock {
    num_local_experts: Option<usize>,
    sliding_window: Option<usize>,
    /// With `ffn` the nested schema of NVIDIA's other Puzzle models, which means something else.
    attention: Option<serde::de::IgnoredAny>,
    ffn: Option<serde::de::IgnoredAny>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    truncate: Option<bool>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
}

/// Largest value accepted for any size, so that products of a few of them stay far from overflow.
const MAX_SIZE: usize = 1 << 24;
/// Longest config.json accepted, in bytes; the published ones are below 10 KB.
const MAX_FILE: u64 = 1 << 20;
/// Most layers accepted.
const MAX_LAYERS: usize = 1 << 12;

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
        let raw: Raw = serde_json::from_str(text)
            .map_err(|e| Error::config(format!("invalid JSON: {e}")).with_source(e))?;
        raw.validate()
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
        let uniform = self
            .block_configs
            .iter()
            .all(|b| b.num_local_experts == self.block_configs[0].num_local_experts);
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
        if self.model_type == "gpt_oss" && uniform && windows.len() <= 1 {
            json["num_local_experts"] = self.block_configs[0].num_local_experts.into();
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

fn required<T>(value: Option<T>, name: &str) -> Result<T> {
    value.ok_or_else(|| Error::config(format!("{name} is missing")))
}

/// Two spellings of one fact: either may be absent, both must agree.
fn agree<T: PartialEq + std::fmt::Debug>(
    (a, a_name): (Option<T>, &str),
    (b, b_name): (Option<T>, &str),
) -> Result<Option<T>> {
    match (a, b) {
        (Some(a), Some(b)) if a != b => {
            Err(Error::config(format!("{a_name} is {a:?} but {b_name} is {b:?}")))
        }
        (a, b) => Ok(a.or(b)),
    }
}

fn size(value: Option<usize>, name: &str) -> Result<usize> {
    match required(value, name)? {
        v @ 1..=MAX_SIZE => Ok(v),
        v => Err(Error::config(format!("{name} is {v}, expected 1 to {MAX_SIZE}"))),
    }
}

fn positive(value: f64, name: &str) -> Result<f64> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(Error::config(format!("{name} is {value}, expected a positive number")))
}

impl Raw {
    fn validate(self) -> Result<ModelConfig> {
        // openai's original/config.json names no model_type; its rope fields are its own.
        let original = self.model_type.is_none() && self.rope_scaling_factor.is_some();
        let model_type = match self.model_type.as_deref() {
            Some(t @ ("gpt_oss" | "gpt_oss_puzzle")) => t.to_string(),
            None if original => "gpt_oss".to_string(),
            None => return Err(Error::config("model_type is missing")),
            Some(t) => {
                return Err(Error::config(format!(
                    "model_type is {t:?}, expected \"gpt_oss_puzzle\" or \"gpt_oss\""
                )));
            }
        };
        if let Some(act) = self.hidden_act.as_deref().filter(|a| *a != "silu") {
            return Err(Error::config(format!("hidden_act is {act:?}, expected \"silu\"")));
        }
        if self.attention_bias == Some(false) {
            return Err(Error::config("attention_bias is false, this family has biases"));
        }
        if self.tie_word_embeddings == Some(true) {
            return Err(Error::config(
                "tie_word_embeddings is true, this family has an untied head",
            ));
        }
        let head_dim = size(self.head_dim, "head_dim")?;
        if !head_dim.is_multiple_of(16) || head_dim > 256 {
            return Err(Error::config(format!(
                "head_dim is {head_dim}, expected a multiple of 16 up to 256"
            )));
        }
        let heads = size(self.num_attention_heads, "num_attention_heads")?;
        let kv_heads = size(self.num_key_value_heads, "num_key_value_heads")?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(Error::config(format!(
                "num_attention_heads is {heads}, not a multiple of num_key_value_heads {kv_heads}"
            )));
        }
        let hidden_size = size(self.hidden_size, "hidden_size")?;
        let intermediate_size = size(self.intermediate_size, "intermediate_size")?;
        for (value, name) in
            [(hidden_size, "hidden_size"), (intermediate_size, "intermediate_size")]
        {
            if value % 32 != 0 {
                return Err(Error::config(format!(
                    "{name} is {value}, not a multiple of the MXFP4 block of 32"
                )));
            }
        }
        let num_experts_per_tok = agree(
            (self.num_experts_per_tok, "num_experts_per_tok"),
            (self.experts_per_token, "experts_per_token"),
        )?;
        let num_experts_per_tok = size(num_experts_per_tok, "num_experts_per_tok")?;
        let block_configs = self.blocks()?;
        for (layer, block) in block_configs.iter().enumerate() {
            let experts = size(
                Some(block.num_local_experts),
                &format!("num_local_experts of layer {layer}"),
            )?;
            if num_experts_per_tok > experts {
                return Err(Error::config(format!(
                    "num_experts_per_tok is {num_experts_per_tok} but layer {layer} has {experts} experts"
                )));
            }
            if let Some(window) = block.sliding_window.filter(|w| !(1..=MAX_SIZE).contains(w)) {
                return Err(Error::config(format!(
                    "sliding_window of layer {layer} is {window}, expected 1 to {MAX_SIZE} or null"
                )));
            }
        }
        let rope = self.rope(original)?;
        let max_position_embeddings = match self.max_position_embeddings {
            None if original => {
                Some((rope.original_max_position_embeddings as f64 * rope.factor) as usize)
            }
            stated => stated,
        };
        Ok(ModelConfig {
            model_type,
            vocab_size: size(self.vocab_size, "vocab_size")?,
            hidden_size,
            intermediate_size,
            head_dim,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            num_experts_per_tok,
            rms_norm_eps: positive(self.rms_norm_eps.unwrap_or(1e-5), "rms_norm_eps")?,
            rope,
            swiglu_limit: positive(self.swiglu_limit.unwrap_or(7.0), "swiglu_limit")?,
            swiglu_alpha: positive(self.swiglu_alpha.unwrap_or(1.702), "swiglu_alpha")?,
            max_position_embeddings: size(max_position_embeddings, "max_position_embeddings")?,
            block_configs,
        })
    }

    /// One entry per layer: `block_configs` where present, else spread from the top-level fields.
    fn blocks(&self) -> Result<Vec<BlockConfig>> {
        let count = match (self.num_hidden_layers, &self.block_configs) {
            (None, Some(blocks)) => blocks.len(),
            (stated, _) => required(stated, "num_hidden_layers")?,
        };
        if !(1..=MAX_LAYERS).contains(&count) {
            return Err(Error::config(format!(
                "num_hidden_layers is {count}, expected 1 to {MAX_LAYERS}"
            )));
        }
        if let Some(types) = &self.layer_types {
            if types.len() != count {
                return Err(Error::config(format!(
                    "layer_types has {} entries but num_hidden_layers is {count}",
                    types.len()
                )));
            }
            let known =
                |t: &&String| !["sliding_attention", "full_attention"].contains(&t.as_str());
            if let Some(t) = types.iter().find(known) {
                return Err(Error::config(format!(
                    "layer_types names {t:?}, expected \"sliding_attention\" or \"full_attention\""
                )));
            }
        }
        let sliding = |layer: usize| match &self.layer_types {
            Some(types) => types[layer] == "sliding_attention",
            // transformers' and openai's rule where the file is silent.
            None => layer.is_multiple_of(2),
        };
        let Some(blocks) = &self.block_configs else {
            let num_local_experts = required(self.num_local_experts, "num_local_experts")?;
            let window = match self.sliding_window {
                None if (0..count).any(sliding) => {
                    return Err(Error::config("sliding_window is missing"));
                }
                window => window,
            };
            let block = |layer| BlockConfig {
                num_local_experts,
                sliding_window: window.filter(|_| sliding(layer)),
            };
            return Ok((0..count).map(block).collect());
        };
        if blocks.len() != count {
            return Err(Error::config(format!(
                "block_configs has {} entries but num_hidden_layers is {count}",
                blocks.len()
            )));
        }
        let block = |(layer, raw): (usize, &RawBlock)| {
            let name = || format!("block_configs[{layer}].num_local_experts");
            let experts = raw.num_local_experts.or(self.num_local_experts);
            if raw.attention.is_some() || raw.ffn.is_some() {
                return Err(Error::config(format!(
                    "block_configs[{layer}] has attention and ffn, expected num_local_experts and \
                     sliding_window"
                )));
            }
            if let Some(types) = &self.layer_types
                && sliding(layer) != raw.sliding_window.is_some()
            {
                return Err(Error::config(format!(
                    "layer_types[{layer}] is {:?} but block_configs[{layer}].sliding_window is {}",
                    types[layer],
                    raw.sliding_window.map_or("null".into(), |w| w.to_string()),
                )));
            }
            Ok(BlockConfig {
                num_local_experts: required(experts, &name())?,
                sliding_window: raw.sliding_window,
            })
        };
        blocks.iter().enumerate().map(block).collect()
    }

    fn rope(&self, original: bool) -> Result<RopeConfig> {
        let spellings = [
            (&self.rope_scaling, "rope_scaling"),
            (&self.rope_parameters, "rope_parameters"),
            (&self.yarn_rope_scaling, "yarn_rope_scaling"),
        ];
        // transformers 5 also writes a rope_parameters of type "default" beside a real scaling.
        let stated = |r: &RawRope| match r.rope_type.as_deref() {
            Some("default") => false,
            Some(_) => true,
            None => r.factor.is_some(),
        };
        let mut scaling: Option<(&RawRope, &str)> = None;
        for (rope, name) in spellings {
            let Some(rope) = rope.as_ref().filter(|r| stated(r)) else { continue };
            match scaling {
                Some((first, first_name))
                    if (RawRope { rope_theta: None, ..first.clone() })
                        != (RawRope { rope_theta: None, ..rope.clone() }) =>
                {
                    return Err(Error::config(format!(
                        "{first_name} is {first:?} but {name} is {rope:?}"
                    )));
                }
                Some(_) => {}
                None => scaling = Some((rope, name)),
            }
        }
        let mut theta = (self.rope_theta, "rope_theta".to_string());
        for (rope, name) in spellings {
            if let Some(inner) = rope.as_ref().and_then(|r| r.rope_theta) {
                let inner_name = format!("{name}.rope_theta");
                theta.0 = agree((theta.0, &theta.1), (Some(inner), &inner_name))?;
            }
        }
        let rope_theta = positive(required(theta.0, "rope_theta")?, "rope_theta")?;
        if rope_theta <= 1.0 {
            return Err(Error::config(format!("rope_theta is {rope_theta}, expected more than 1")));
        }
        let own;
        let (rope, name) = match scaling {
            Some(found) => found,
            None => {
                own = RawRope {
                    factor: Some(self.rope_scaling_factor.unwrap_or(1.0)),
                    beta_slow: self.rope_ntk_alpha,
                    beta_fast: self.rope_ntk_beta,
                    truncate: original.then_some(false),
                    ..RawRope::default()
                };
                (&own, "rope_scaling")
            }
        };
        if let Some(t) = rope.rope_type.as_deref().filter(|t| *t != "yarn") {
            return Err(Error::config(format!("{name}.rope_type is {t:?}, expected \"yarn\"")));
        }
        if rope.mscale.is_some() || rope.mscale_all_dim.is_some() {
            return Err(Error::config(format!("{name}.mscale is not supported for this family")));
        }
        let context = agree(
            (
                rope.original_max_position_embeddings,
                &format!("{name}.original_max_position_embeddings"),
            ),
            (self.initial_context_length, "initial_context_length"),
        )?;
        let factor =
            positive(required(rope.factor, &format!("{name}.factor"))?, &format!("{name}.factor"))?;
        let context = match context {
            None if factor == 1.0 => self.max_position_embeddings,
            stated => stated,
        };
        let attention_factor = rope.attention_factor.unwrap_or(default_attention_factor(factor));
        let config = RopeConfig {
            rope_theta,
            factor,
            original_max_position_embeddings: size(
                context,
                &format!("{name}.original_max_position_embeddings"),
            )?,
            beta_fast: positive(rope.beta_fast.unwrap_or(32.0), &format!("{name}.beta_fast"))?,
            beta_slow: positive(rope.beta_slow.unwrap_or(1.0), &format!("{name}.beta_slow"))?,
            truncate: rope.truncate.unwrap_or(true),
            attention_factor: positive(attention_factor, &format!("{name}.attention_factor"))?,
        };
        if config.beta_fast <= config.beta_slow {
            return Err(Error::config(format!(
                "{name}.beta_fast is {} but {name}.beta_slow is {}",
                config.beta_fast, config.beta_slow
            )));
        }
        Ok(config)
    }
}
