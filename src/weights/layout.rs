//! Which tensors a configuration needs, and what each layout calls them.

use super::safetensors::StoredTensor;
use super::shown;
use crate::config::ModelConfig;
use crate::{Error, Result};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::ops::Range;

/// How a checkpoint stores the weights of this family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// Hugging Face with MXFP4 experts: `gate_up_proj_blocks`, `gate_up_proj_scales`. What openai
    /// and NVIDIA publish.
    HfMxfp4,
    /// Hugging Face with the experts dequantised: `gate_up_proj` `[E, in, out]` in BF16.
    HfBf16,
    /// openai's `original/` folder: fused `qkv`, `mlp1_weight.blocks`.
    Original,
}

const SUPPORTED: &str = "supported are Hugging Face MXFP4 (`mlp.experts.gate_up_proj_blocks` and \
    `_scales`), Hugging Face BF16 (`mlp.experts.gate_up_proj`) and openai's original \
    (`mlp.mlp1_weight.blocks`)";

impl Layout {
    /// The layout these tensors are in.
    pub(super) fn of(tensors: &BTreeMap<String, StoredTensor>) -> Result<Layout> {
        let any = |end: &str| tensors.keys().any(|name| name.ends_with(end));
        if any(".mlp.experts.gate_up_proj_blocks") {
            return Ok(Layout::HfMxfp4);
        }
        if any(".mlp.experts.gate_up_proj") {
            return Ok(Layout::HfBf16);
        }
        if any(".mlp.mlp1_weight.blocks") {
            return Ok(Layout::Original);
        }
        let expert = |name: &str| name.contains(".experts.") || name.contains(".mlp1_weight");
        // The matrices tell more about who wrote the file than their scales and biases.
        let minor = |name: &str| name.ends_with("bias") || name.ends_with("scales");
        let experts = tensors.iter().filter(|(name, _)| expert(name));
        let Some((name, tensor)) = experts.min_by_key(|(name, _)| minor(name)) else {
            return Err(Error::checkpoint(format!(
                "no expert weights among {} tensors; {SUPPORTED}",
                tensors.len()
            )));
        };
        // Names as the converters' own code writes them; the guess only helps the message.
        let converter = match () {
            _ if any("proj.absmax") || any(".quant_state.bitsandbytes__nf4") => " by bitsandbytes",
            _ if any("proj.weight_scale") || any("proj.input_scale") => " by Quark or ModelOpt",
            _ if any("proj.weight_packed") => " by compressed-tensors",
            _ if tensor.dtype() == Dtype::U32 || any(".gate_proj.scales") => " by MLX",
            _ => "",
        };
        Err(Error::checkpoint(format!(
            "experts converted{converter}: found {} of {} {:?} in {}; {SUPPORTED}",
            shown(name),
            tensor.dtype(),
            tensor.shape(),
            tensor.file().display(),
        )))
    }

    /// What this layout calls the tensor `name`; for a part of a fused tensor also its rows and the
    /// fused tensor's row count.
    pub(super) fn stored(
        self,
        name: &str,
        config: &ModelConfig,
    ) -> (String, Option<(Range<usize>, usize)>) {
        let whole = |name: String| (name, None);
        if self != Layout::Original {
            return whole(name.to_string());
        }
        match name {
            "model.embed_tokens.weight" => return whole("embedding.weight".into()),
            "lm_head.weight" => return whole("unembedding.weight".into()),
            "model.norm.weight" => return whole("norm.scale".into()),
            _ => {}
        }
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let Some((layer, rest)) = layer else { return whole(name.to_string()) };
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let qkv =
            |part: &str, rows| (format!("block.{layer}.attn.qkv.{part}"), Some((rows, q + 2 * kv)));
        let plain = match rest {
            "input_layernorm.weight" => "attn.norm.scale",
            "post_attention_layernorm.weight" => "mlp.norm.scale",
            "self_attn.q_proj.weight" => return qkv("weight", 0..q),
            "self_attn.k_proj.weight" => return qkv("weight", q..q + kv),
            "self_attn.v_proj.weight" => return qkv("weight", q + kv..q + 2 * kv),
            "self_attn.q_proj.bias" => return qkv("bias", 0..q),
            "self_attn.k_proj.bias" => return qkv("bias", q..q + kv),
            "self_attn.v_proj.bias" => return qkv("bias", q + kv..q + 2 * kv),
            "self_attn.o_proj.weight" => "attn.out.weight",
            "self_attn.o_proj.bias" => "attn.out.bias",
            "self_attn.sinks" => "attn.sinks",
            "mlp.router.weight" => "mlp.gate.weight",
            "mlp.router.bias" => "mlp.gate.bias",
            "mlp.experts.gate_up_proj_blocks" => "mlp.mlp1_weight.blocks",
            "mlp.experts.gate_up_proj_scales" => "mlp.mlp1_weight.scales",
            "mlp.experts.gate_up_proj_bias" => "mlp.mlp1_bias",
            "mlp.experts.down_proj_blocks" => "mlp.mlp2_weight.blocks",
            "mlp.experts.down_proj_scales" => "mlp.mlp2_weight.scales",
            "mlp.experts.down_proj_bias" => "mlp.mlp2_bias",
            _ => return whole(name.to_string()),
        };
        whole(format!("block.{layer}.{plain}"))
    }

    /// What the names of a layer's attention tensors start with.
    pub(super) fn attention_prefix(self, layer: usize) -> String {
        match self {
            Layout::Original => format!("block.{layer}.attn."),
            _ => format!("model.layers.{layer}.self_attn."),
        }
    }
}

/// What a tensor may be stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// BF16, used in place.
    Matrix,
    /// BF16, F16 or F32, widened when used.
    Vector,
    /// U8: nibbles or exponents.
    Bytes,
}

impl Stored {
    pub(super) fn accepts(self, dtype: Dtype) -> bool {
        match self {
            Stored::Matrix => dtype == Dtype::BF16,
            Stored::Vector => matches!(dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32),
            Stored::Bytes => dtype == Dtype::U8,
        }
    }

    /// The dtypes accepted, for messages.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Stored::Matrix => "BF16",
            Stored::Vector => "BF16, F16 or F32",
            Stored::Bytes => "U8",
        }
    }
}

/// A tensor that must be there.
pub(super) struct Required {
    /// By its Hugging Face name.
    pub name: String,
    pub shape: Vec<usize>,
    pub stored: Stored,
    /// Mean of random weights.
    pub mean: f32,
    /// Standard deviation of random weights; of the decoded weights for `_scales`.
    pub std: f32,
}

fn required(name: String, shape: &[usize], stored: Stored, mean: f32, std: f32) -> Required {
    Required { name, shape: shape.to_vec(), stored, mean, std }
}

/// The tensors outside the layers.
pub(super) fn outer(config: &ModelConfig) -> Vec<Required> {
    let (v, h) = (config.vocab_size, config.hidden_size);
    vec![
        required("model.embed_tokens.weight".into(), &[v, h], Stored::Matrix, 0.0, 1.0),
        required("lm_head.weight".into(), &[v, h], Stored::Matrix, 0.0, 2.0 / (h as f32).sqrt()),
        required("model.norm.weight".into(), &[h], Stored::Vector, 1.0, 0.1),
    ]
}

/// The tensors of one layer.
pub(super) fn layer(config: &ModelConfig, layout: Layout, layer: usize) -> Vec<Required> {
    let (h, i) = (config.hidden_size, config.intermediate_size);
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    let e = config.block_configs[layer].num_local_experts;
    let name = |rest: &str| format!("model.layers.{layer}.{rest}");
    // Random weights keep the residual stream, the scores and the router's logits of order one.
    let fan_in = |width: usize| 1.5 / (width as f32).sqrt();
    let mut list = Vec::with_capacity(19);
    let mut matrix = |rest: &str, shape: &[usize], std| {
        list.push(required(name(rest), shape, Stored::Matrix, 0.0, std));
    };
    matrix("self_attn.q_proj.weight", &[q, h], fan_in(h));
    matrix("self_attn.k_proj.weight", &[kv, h], fan_in(h));
    matrix("self_attn.v_proj.weight", &[kv, h], fan_in(h));
    matrix("self_attn.o_proj.weight", &[h, q], fan_in(q));
    matrix("mlp.router.weight", &[e, h], 2.0 / (h as f32).sqrt());
    matrix("mlp.experts.gate_up_proj_bias", &[e, 2 * i], 0.1);
    matrix("mlp.experts.down_proj_bias", &[e, h], 0.1);
    let mut vector = |rest: &str, shape: &[usize], mean, std| {
        list.push(required(name(rest), shape, Stored::Vector, mean, std));
    };
    vector("input_layernorm.weight", &[h], 1.0, 0.1);
    vector("post_attention_layernorm.weight", &[h], 1.0, 0.1);
    vector("self_attn.q_proj.bias", &[q], 0.0, 0.1);
    vector("self_attn.k_proj.bias", &[kv], 0.0, 0.1);
    vector("self_attn.v_proj.bias", &[kv], 0.0, 0.1);
    vector("self_attn.o_proj.bias", &[h], 0.0, 0.1);
    vector("self_attn.sinks", &[config.num_attention_heads], 0.0, 1.0);
    vector("mlp.router.bias", &[e], 0.0, 0.1);
    for (projection, rows, cols) in [("gate_up_proj", 2 * i, h), ("down_proj", h, i)] {
        let name = |end: &str| name(&format!("mlp.experts.{projection}{end}"));
        let std = fan_in(cols);
        if layout == Layout::HfBf16 {
            list.push(required(name(""), &[e, cols, rows], Stored::Matrix, 0.0, std));
        } else {
            let blocks = [e, rows, cols / 32, 16];
            list.push(required(name("_blocks"), &blocks, Stored::Bytes, 0.0, 0.0));
            list.push(required(name("_scales"), &blocks[..3], Stored::Bytes, 0.0, std));
        }
    }
    list
}
