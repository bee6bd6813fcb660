//! config.json as it may be spelled, and the checks that turn it into a [`ModelConfig`].

use super::{BlockConfig, ModelConfig, RopeConfig, default_attention_factor};
use crate::{Error, Result};
use serde::Deserialize;

/// config.json as it may be spelled: the Hugging Face layout and openai's `original/` one.
#[derive(Deserialize)]
pub(super) struct Raw {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    head_dim: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_local_experts: Option<usize>,
    num_experts: Option<usize>,
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
    rope_type: Option<String>,
    /// transformers 4 writes it beside `rope_type` or instead of it.
    #[serde(rename = "type")]
    old_type: Option<String>,
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
/// Most layers accepted.
const MAX_LAYERS: usize = 1 << 12;

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
    pub(super) fn validate(self) -> Result<ModelConfig> {
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
        let num_local_experts = agree(
            (self.num_local_experts, "num_local_experts"),
            (self.num_experts, "num_experts"),
        )?;
        let Some(blocks) = &self.block_configs else {
            let num_local_experts = required(num_local_experts, "num_local_experts")?;
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
            let experts = raw.num_local_experts.or(num_local_experts);
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
        let one_type = |rope: &Option<RawRope>, name: &'static str| {
            let Some(rope) = rope.clone() else { return Ok((None, name)) };
            let rope_type = agree(
                (rope.rope_type, &format!("{name}.rope_type")),
                (rope.old_type, &format!("{name}.type")),
            )?;
            Ok::<_, Error>((Some(RawRope { rope_type, old_type: None, ..rope }), name))
        };
        let spellings = [
            one_type(&self.rope_scaling, "rope_scaling")?,
            one_type(&self.rope_parameters, "rope_parameters")?,
            one_type(&self.yarn_rope_scaling, "yarn_rope_scaling")?,
        ];
        // transformers 5 also writes a rope_parameters of type "default" beside a real scaling.
        let stated = |r: &RawRope| match r.rope_type.as_deref() {
            Some("default") => false,
            Some(_) => true,
            None => r.factor.is_some(),
        };
        let mut scaling: Option<(&RawRope, &str)> = None;
        for (rope, name) in &spellings {
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
        for (rope, name) in &spellings {
            if let Some(inner) = rope.as_ref().and_then(|r| r.rope_theta) {
                let inner_name = format!("{name}.rope_theta");
                agree((theta.0, &theta.1), (Some(inner), &inner_name))?;
                theta = (Some(inner), inner_name);
            }
        }
        let rope_theta = positive(required(theta.0, "rope_theta")?, &theta.1)?;
        if rope_theta <= 1.0 {
            return Err(Error::config(format!("rope_theta is {rope_theta}, expected more than 1")));
        }
        let own;
        let (rope, name) = match scaling {
            Some(found) => found,
            None => {
                own = RawRope {
                    factor: Some(self.rope_scaling_factor.unwrap_or(1.0)),
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
        // openai's own names, also where they stand beside Hugging Face's.
        let context = agree(
            (
                rope.original_max_position_embeddings,
                &format!("{name}.original_max_position_embeddings"),
            ),
            (self.initial_context_length, "initial_context_length"),
        )?;
        let field = |value, field: &str, other, other_name: &str| {
            agree((value, &format!("{name}.{field}")), (other, other_name))
        };
        let factor = field(rope.factor, "factor", self.rope_scaling_factor, "rope_scaling_factor")?;
        let beta_fast = field(rope.beta_fast, "beta_fast", self.rope_ntk_beta, "rope_ntk_beta")?;
        let beta_slow = field(rope.beta_slow, "beta_slow", self.rope_ntk_alpha, "rope_ntk_alpha")?;
        let factor =
            positive(required(factor, &format!("{name}.factor"))?, &format!("{name}.factor"))?;
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
            beta_fast: positive(beta_fast.unwrap_or(32.0), &format!("{name}.beta_fast"))?,
            beta_slow: positive(beta_slow.unwrap_or(1.0), &format!("{name}.beta_slow"))?,
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
